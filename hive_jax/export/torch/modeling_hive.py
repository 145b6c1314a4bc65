"""HIVE in PyTorch: a decoder that reads depths of a SigLIP encoder.

"Hierarchical Pre-Training of Vision Encoders with Large Language Models",
arXiv 2604.00086. Encoder and decoder are those of transformers (4.57 and 5); this
file has what connects them. Shapes:

    B batch            T text tokens      P image patches    S side of an image
    N query heads      K kv heads         H head dimension   D encoder width
    E decoder width    V vocabulary
"""

import dataclasses
import functools

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.utils import can_return_tuple

from .configuration_hive import HiveConfig
from .connections_hive import CrossAttention, Image, KeysValues, Projector
from .joint_attention_hive import JOINT, JointAttention

# What transformers calls the cache, in calls and outputs: renamed in 5.24.
_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
_CACHE = "cache" if "cache" in _FIELDS else "past_key_values"


class HiveForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Next-token logits of text that sees an image; see `forward`.

    Without an lm_head, logits are the hidden states times the token embeddings.
    Gemma 2 runs with eager attention where it would with sdpa, which cannot soft-cap.
    """

    config_class = HiveConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HiveConfig):
        super().__init__(config)
        text = config.text_config
        if config.fusion == "joint":
            text._attn_implementation = JOINT
        soft_capped = getattr(text, "attn_logit_softcapping", None)
        if soft_capped and text._attn_implementation in (None, "sdpa"):
            text._attn_implementation = "eager"
        vision_model = AutoModel.from_config(config.vision_config)
        # In transformers 4 it is wrapped once more than in 5.
        self.vision_model = getattr(vision_model, "vision_model", vision_model)
        self.language_model = AutoModel.from_config(text)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.projectors = nn.ModuleList(Projector(config) for _ in config.connections)
        blocks = nn.ModuleList()
        for number, (_, layer_number) in enumerate(config.connections):
            layer = self.language_model.layers[layer_number - 1]
            if config.fusion == "joint":
                blocks.append(JointAttention(config, number, layer.self_attn))
                hook = functools.partial(
                    blocks[-1].before_attention, self.language_model
                )
                hooked = layer.self_attn
            else:
                blocks.append(CrossAttention(config, number))
                hooked, hook = layer, blocks[-1].before_layer
            hooked.register_forward_pre_hook(hook, with_kwargs=True)
        joint = config.fusion == "joint"
        setattr(self, "joint_attentions" if joint else "cross_attentions", blocks)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # These norms multiply by 1 + weight; a closed gate leaves the decoder as is.
        if isinstance(module, GemmaRMSNorm):
            nn.init.zeros_(module.weight)
        elif isinstance(module, CrossAttention):
            nn.init.zeros_(module.gate)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs=None, **kwargs
    ):
        """As in PreTrainedModel, but not re-entrant; ValueError for use_reentrant=True.

        Re-entrant, it would go back through the encoder once for each connection, and
        lose the gradients of trained layers above frozen ones.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise ValueError("use_reentrant is True; expected False, or leave it out")
        super().gradient_checkpointing_enable(options, **kwargs)

    def image_keys_values(
        self, pixel_values: torch.Tensor, start: torch.Tensor
    ) -> list[KeysValues]:
        """float [B, 3, S, S] in [-1, 1] -> for each connection keys and values
        [B, K, P, H], from the output of its encoder block before the final norm.

        `start` int [B] is the position of the first token after the image, which the
        patches of a joint attention count from.
        """
        depths = [depth for depth, _ in self.config.connections]
        # Index 0 is the embeddings, so that depths count from 1. Blocks after the
        # deepest connection do not run.
        features = [self.vision_model.embeddings(pixel_values)]
        for block in self.vision_model.encoder.layers[: max(depths, default=0)]:
            features.append(block(features[-1], attention_mask=None))
        projected = [
            projector(features[depth])
            for depth, projector in zip(depths, self.projectors, strict=True)
        ]
        if self.config.fusion == "joint":
            return [
                block.keys_values(one, self.language_model, start)
                for one, block in zip(projected, self.joint_attentions, strict=True)
            ]
        return [
            block.keys_values(one)
            for one, block in zip(projected, self.cross_attentions, strict=True)
        ]

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        image_mask=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        inputs_embeds=None,
        position_ids=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of the tokens of this call, and the loss of `labels`.

        Args:
          input_ids: int [B, T]; or inputs_embeds [B, T, E] as get_input_embeddings()
            gives them.
          pixel_values: float [B, 3, S, S] in [-1, 1]. Without them the tokens see the
            image that `past_key_values` keeps, or none.
          image_mask: bool [B, T], False for a token that does not see the image of its
            sample. By default all do; with the image of a cache, as the last token did.
          past_key_values: a Cache, which keeps images too (see `Image`).
          cache: the same; its name from transformers 5.24 on.
          labels: int [B, T], shifted here; -100 where there is no loss.
          logits_to_keep: how many of the last positions get logits (0: all), or which.
          kwargs: what else the decoder takes, output_hidden_states for example.

        Raises:
          ValueError: pixel_values or image_mask of another shape than expected, or
            image_mask without an image.
        """
        if cache is None:
            cache = past_key_values
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        padding = attention_mask if getattr(attention_mask, "ndim", 0) == 2 else None
        image = self._image(
            pixel_values, image_mask, cache, tokens.shape[:2], padding, position_ids
        )
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{_CACHE: cache},
            **(kwargs if image is None else {**kwargs, "image": image}),
        )
        cache = getattr(outputs, _CACHE)
        if image is not None and cache is not None:
            cache.image = image.of_last_token()
        if isinstance(logits_to_keep, int):
            # slice(-0, None) is everything.
            logits_to_keep = slice(-logits_to_keep, None)
        # Cut before the product with the vocabulary, the largest of a forward pass.
        logits = self._logits(outputs.last_hidden_state[:, logits_to_keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{_CACHE: cache},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _image(
        self, pixel_values, image_mask, cache, shape, padding, position_ids
    ) -> Image | None:
        """The image for tokens of `shape` (B, T): a new one, the cached one or none."""
        cached = getattr(cache, "image", None)
        if cached and not torch.compiler.is_compiling() and not cache.get_seq_length():
            cached = cache.image = None  # a static cache that was reset
        if pixel_values is None and not cached:
            if image_mask is None:
                return None
            raise ValueError("image_mask came without pixel_values; give both or none")
        length = shape[1] + (0 if cache is None else cache.get_seq_length())
        device = self.get_input_embeddings().weight.device
        sees = torch.ones(shape, dtype=torch.bool, device=device)
        if pixel_values is None:
            sees = cached.sees.expand(shape)
        if image_mask is not None:
            meaning = "one bool for each token of this call"
            _require_shape("image_mask", image_mask, shape, meaning)
            sees = image_mask.bool()
        if pixel_values is None:
            return dataclasses.replace(cached, sees=sees, length=length)
        vision = self.config.vision_config
        side = vision.image_size
        expected = (shape[0], vision.num_channels, side, side)
        meaning = "one image for each sample, resized to the encoder's size"
        _require_shape("pixel_values", pixel_values, expected, meaning)
        # The slot of the first token that sees the image, and its position.
        real = sees if padding is None else sees & padding[:, -shape[1] :].bool()
        slot = start = real.int().argmax(dim=1)
        if position_ids is not None:
            position = position_ids.expand(shape)
            start = position.gather(1, slot[:, None])[:, 0]
        keys_values = self.image_keys_values(pixel_values, start)
        return Image(keys_values, sees, slot, sees.any(dim=1), length)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        head = self.get_output_embeddings()
        weight = (self.get_input_embeddings() if head is None else head).weight
        # accelerate's offloading moves weights around forward calls of their own
        # module; here the table is read outside of one.
        if weight.is_meta and not hidden.is_meta:
            raise ValueError(
                "the output head is offloaded, and logits need it; give a device_map "
                "that keeps language_model.embed_tokens, or lm_head if the model has "
                "one, on a device"
            )
        logits = F.linear(hidden, weight)
        # Gemma 2 has it, and not every configuration has the key.
        limit = getattr(self.config.text_config, "final_logit_softcapping", None)
        return torch.tanh(logits / limit) * limit if limit else logits

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, image_mask=None, **kwargs
    ):
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        if image_mask is not None:
            # New tokens see the image if the last one of the prompt does.
            new = max(0, input_ids.shape[1] - image_mask.shape[1])
            last = image_mask[:, -1:].expand(-1, new)
            image_mask = torch.cat([image_mask, last], dim=1)
            cache = inputs.get(_CACHE)
            if cache is not None and cache.get_seq_length():
                ids, embeds = inputs["input_ids"], inputs.get("inputs_embeds")
                tokens = ids if embeds is None else embeds
                image_mask = image_mask[:, -tokens.shape[1] :]
            inputs["image_mask"] = image_mask
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs, model_kwargs, *args, **kwargs
    ):
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if outputs.get(_CACHE) is not None:
            model_kwargs.pop("pixel_values", None)  # from here on the cache keeps them
        return model_kwargs


def _require_shape(name: str, tensor: torch.Tensor, expected: tuple, meaning: str):
    if list(tensor.shape) != list(expected):
        raise ValueError(
            f"{name} is {list(tensor.shape)}; expected {list(expected)}: {meaning}"
        )
