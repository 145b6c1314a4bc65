"""What our models give on fixed inputs: the figures that an export is checked against."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.data.tabletop.dataset import Tabletop
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.models.decoder import Decoder, DecoderConfig
from hive_jax.models.hive import Hive
from hive_jax.models.siglip import SiglipEncoder, TwoTowers
from hive_jax.models.stack import SCANNED

NUM_IMAGES = 4
NEW_TOKENS = 16
_TEXT = "a small red star stands on the table"
# As many as a prompt of one token and what is generated after it: one compilation.
_NUM_RANDOM_TOKENS = 1 + NEW_TOKENS


def fixed_inputs(
    part: str,
    config,
    tokenizer: Tokenizer | None,
    image_token_id: int | None = None,
) -> dict[str, np.ndarray]:
    """Scenes of the built-in world and random tokens, the same every time.

    Returns:
      part, image_file uint8[height, width, 3], text; and as the part needs them
      pixel_values float32[B, 3, size, size] in [-1, 1], tokens int64[B, T], and for
      models with both image_tokens int64[B, 0 or P] and prompt int64[B, 1].
    """
    rng = np.random.default_rng(0)
    text = _TEXT if tokenizer else ""
    size = _image_size(part, config)
    inputs = {
        "part": np.asarray(part),
        "image_file": Tabletop("test", image_size=max(8, 3 * size // 2))[0].image,
        "text": np.asarray(text),
    }
    if part != "decoder":
        scenes = Tabletop("test", image_size=size)
        images = np.stack([scenes[i].image for i in range(NUM_IMAGES)])
        pixels = images.astype(np.float32) / 127.5 - 1.0
        inputs["pixel_values"] = pixels.transpose(0, 3, 1, 2)
    if part == "encoder":
        return inputs
    if part == "two_towers":
        shape, vocab_size = (NUM_IMAGES, config[1].num_tokens), config[1].vocab_size
    elif part == "decoder":
        shape, vocab_size = _longer_than_windows(config), config.vocab_size
    else:
        shape, vocab_size = (NUM_IMAGES, _NUM_RANDOM_TOKENS), config.decoder.vocab_size
        if image_token_id is not None:
            vocab_size = min(vocab_size, image_token_id)
    inputs["tokens"] = rng.integers(0, vocab_size, shape)
    if part in ("vlm", "hive"):
        first = tokenizer.bos_id if tokenizer else None
        first = 0 if first is None else first
        inputs["prompt"] = np.full((NUM_IMAGES, 1), first)
        count = config.encoder.num_patches if part == "vlm" else 0
        inputs["image_tokens"] = np.full((NUM_IMAGES, count), image_token_id or 0)
    return inputs


def _longer_than_windows(decoder: DecoderConfig) -> tuple[int, int]:
    """A shape of tokens in which local layers do not see all that global ones see; the
    longest windows are left to the comparison of configurations."""
    if decoder.local_layers and decoder.window <= 1024:
        return 1, max(_NUM_RANDOM_TOKENS, decoder.window + 8)
    return NUM_IMAGES, _NUM_RANDOM_TOKENS


def _image_size(part: str, config) -> int:
    """Of any image at all for a decoder, which has none."""
    if part == "decoder":
        return 8
    if part == "two_towers":
        return config[0].image_size
    return config.image_size if part == "encoder" else config.encoder.image_size


def reference(
    part: str,
    config,
    arrays: Mapping[str, np.ndarray],
    inputs: Mapping,
    generated: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """The outputs that `torch/check.py` gives under the same names, in float32.

    Args:
      config: SiglipConfig, (SiglipConfig, TextTowerConfig), DecoderConfig or HiveConfig.
      arrays: its parameters by name.
      generated: int[B, NEW_TOKENS] after the prompt, for a model with both. "greedy"
        is then the likeliest token after each beginning of it: equal to `generated`,
        it is what greedy decoding gives, from one run over the whole.
    """
    if generated is not None:
        inputs = {**inputs, "generated": generated}
    params = unflatten_dict(dict(arrays), sep="/")
    variables = {"params": params}
    with jax.default_matmul_precision("highest"):
        if part == "decoder":
            decoder = Decoder(config, execution=SCANNED.decoder)
            logits = jax.jit(decoder.apply)(variables, inputs["tokens"])
            found = {"logits": logits}
        else:
            images = inputs["pixel_values"].transpose(0, 2, 3, 1)
            run = {"encoder": _encoder, "two_towers": _two_towers}.get(part, _hive)
            found = run(config, variables, images, inputs)
    return {name: np.asarray(value) for name, value in found.items()}


def _encoder(config, variables, images, unused_inputs) -> dict:
    depths = tuple(range(1, config.depth + 1))
    encoder = SiglipEncoder(config, execution=SCANNED.encoder)
    apply = jax.jit(encoder.apply, static_argnums=2)
    out = apply(variables, images, depths)
    found = {
        f"depth {n}": features for n, features in zip(depths, out.features, strict=True)
    }
    found["tokens"] = out.tokens
    if config.map_head:
        found["pooled"] = out.pooled
    return found


def _two_towers(config, variables, images, inputs) -> dict:
    apply = jax.jit(TwoTowers(*config, execution=SCANNED).apply)
    zimg, ztxt, t, b = apply(variables, images, inputs["tokens"])
    logits = jnp.einsum("id,td->it", zimg, ztxt) * t[0] + b[0]
    return {"image embeddings": zimg, "text embeddings": ztxt, "logits": logits}


def _hive(config, variables, images, inputs) -> dict:
    model = Hive(config, execution=SCANNED)

    @jax.jit
    def logits(variables, images, tokens):
        sees = jnp.ones(tokens.shape, bool)
        hidden = model.apply(variables, images, tokens, sees)
        return model.apply(variables, hidden, method="logits")

    found = {"logits": logits(variables, images, inputs["tokens"])}
    whole = np.concatenate([inputs["prompt"], inputs["generated"]], axis=1)
    likeliest = logits(variables, images, whole).argmax(-1)
    found["greedy"] = likeliest[:, -NEW_TOKENS - 1 : -1]
    return found


def template_ids(tokenizer: Tokenizer, inputs: Mapping) -> np.ndarray:
    """The tokens that training makes of an image and the fixed text, a line."""
    ids, _ = tokenizer.encode(str(inputs["text"]) + "\n")
    image = inputs["image_tokens"][0].tolist()
    return np.asarray(image + inputs["prompt"][0].tolist() + ids)


def text_ids(tokenizer: Tokenizer, inputs: Mapping) -> np.ndarray:
    """The tokens of the fixed text, with the begin-of-sequence token."""
    ids, _ = tokenizer.encode(str(inputs["text"]))
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return np.asarray(first + ids)


def comparable(part: str, config):
    """The model that the stock class computes, and what of ours it leaves out."""
    if part != "vlm" or not config.decoder.final_softcap:
        return config, []
    decoder = dataclasses.replace(config.decoder, final_softcap=0.0)
    left_out = [f"final_softcap {config.decoder.final_softcap:g}"]
    return dataclasses.replace(config, decoder=decoder), left_out
