"""The peers: each a model of transformers, and its loss as fast as it goes.

B batch    T text tokens    P image patches    S side of an image
E decoder width
"""

import sys
from collections.abc import Callable

import losses
import torch
from torch import nn

Batch = dict[str, torch.Tensor]


def hive_loss(model: nn.Module, batch: Batch, job: dict) -> Callable:
    """Returns the loss function of HIVE, with the modeling code of exported models.

    Logits are computed for supervised tokens only, and encoder layers beyond the
    deepest connection are skipped.

    Args:
      model: HiveForConditionalGeneration.
      batch: image, tokens and target, on the device.
      job: its "dtype" is that of the computation, "compile" is passed on to
        `losses.supervised`.
    """
    image_class = sys.modules[type(model).__module__].Image
    depths = [depth for depth, _ in model.config.connections]
    connected = list(zip(depths, model.projectors, model.cross_attentions, strict=True))
    decoder = model.language_model
    # Once: shapes do not change, and masks of transformers are built in every call.
    masks = _masks(decoder.config, batch["tokens"].shape[1], batch["tokens"].device)
    # The image precedes the text.
    sees = torch.ones_like(batch["target"])
    where = torch.zeros_like(sees[:, 0]), sees.any(dim=1), sees.shape[1]
    dtype = getattr(torch, job["dtype"])

    def hidden_states():
        pixels = _pixels(batch["image"])
        features = _features(model.vision_model, pixels, max(depths), dtype)
        keys_values = [
            attention.keys_values(projector(features[depth - 1]))
            for depth, projector, attention in connected
        ]
        return decoder(
            inputs_embeds=decoder.embed_tokens(batch["tokens"]).to(dtype),
            attention_mask=masks,
            image=image_class(keys_values, sees, *where),
            use_cache=False,
        ).last_hidden_state

    return losses.supervised(hidden_states, decoder.embed_tokens, batch, job["compile"])


def llava_loss(model: nn.Module, batch: Batch, job: dict) -> Callable:
    """Returns the loss function of LLaVA, optimized as that of `hive_loss`.

    Args:
      model: LlavaForConditionalGeneration.
      batch, job: as for `hive_loss`.
    """
    config = model.config
    llava = getattr(model, "model", model)
    tower = getattr(llava.vision_tower, "vision_model", llava.vision_tower)
    # vision_feature_layer is negative, an index into hidden_states, which begins with
    # the embeddings.
    depth = config.vision_config.num_hidden_layers + 1 + config.vision_feature_layer
    decoder, num_patches = llava.language_model, config.image_seq_length
    length = num_patches + batch["tokens"].shape[1]
    masks = _masks(decoder.config, length, batch["tokens"].device)
    dtype = getattr(torch, job["dtype"])

    def hidden_states():
        features = _features(tower, _pixels(batch["image"]), depth, dtype)[-1]
        image = llava.multi_modal_projector(features)
        text = decoder.embed_tokens(batch["tokens"]).to(dtype)
        hidden = decoder(
            inputs_embeds=torch.cat([image, text], dim=1),
            attention_mask=masks,
            use_cache=False,
        ).last_hidden_state
        # Image tokens have no next token to predict.
        return hidden[:, num_patches:]

    return losses.supervised(hidden_states, decoder.embed_tokens, batch, job["compile"])


def llava_as_shipped(model: nn.Module, batch: Batch, job: dict) -> Callable:
    """Returns the loss function of LLaVA as documented: labels through the model.

    Image tokens are part of the text; everything else is left at its default.

    Args:
      model: LlavaForConditionalGeneration.
      batch: as for `hive_loss`.
      job: not used.
    """
    del job
    count = len(batch["tokens"]), model.config.image_seq_length
    tokens = batch["tokens"]
    image = tokens.new_full(count, model.config.image_token_index)
    tokens = torch.cat([image, tokens], dim=1)
    # -100 is the label that torch's cross-entropy ignores.
    labels = batch["tokens"].masked_fill(~batch["target"], -100)
    labels = torch.cat([torch.full_like(image, -100), labels], dim=1)

    def loss():
        pixels = _pixels(batch["image"])
        return model(input_ids=tokens, pixel_values=pixels, labels=labels).loss

    return loss


# Name -> (function that makes the loss, whether it is tuned).
PEERS = {
    "hive": (hive_loss, True),
    "llava": (llava_loss, True),
    "llava_as_shipped": (llava_as_shipped, False),
}


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _features(tower: nn.Module, pixels: torch.Tensor, depth: int, dtype: torch.dtype):
    """Returns the outputs of blocks 1 to `depth`, without a graph where none trains."""
    blocks = tower.encoder.layers[:depth]
    trains = any(weight.requires_grad for weight in tower.parameters())
    features = []
    with torch.set_grad_enabled(trains):
        hidden = tower.embeddings(pixels).to(dtype)
        for block in blocks:
            hidden = block(hidden, attention_mask=None)
            features.append(hidden)
    return features


def _masks(config, length: int, device: torch.device) -> dict | None:
    """Builds the mask of each kind of decoder layer; None for a plain causal one."""
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    window = (distance >= 0) & (distance < config.sliding_window)
    # None lets attention use its causal kernel, which needs no mask.
    sliding = window[None, None] if length > config.sliding_window else None
    return {"full_attention": None, "sliding_attention": sliding}
