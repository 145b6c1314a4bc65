"""Fixed inputs that exports are verified on: built-in scenes and random tokens."""

from collections.abc import Mapping

import numpy as np

from hive_jax.data.sample_encoding import count_tokens, encode_sample
from hive_jax.data.tabletop.dataset import Tabletop
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.types import Sample, Segment
from hive_jax.export.processor_images import image_files, normalize
from hive_jax.models.config import SiglipConfig

NUM_IMAGES = 4
NEW_TOKENS = 16
# As long as the prompt and the generated tokens: one compilation serves both.
NUM_TOKENS = 1 + NEW_TOKENS
TEXT = "a small red star stands on the table"


def example_images(config: SiglipConfig) -> dict[str, np.ndarray]:
    """Returns the entries pixel_values and image_file... of `Component.example_inputs`."""
    size = config.image_size
    scenes = Tabletop("test", image_size=size)
    images = np.stack([scenes[i].image for i in range(NUM_IMAGES)])
    return image_files(size) | {"pixel_values": normalize(images)}


def example_tokens(shape: tuple[int, int], vocab_size: int) -> np.ndarray:
    """Returns random token ids, int64[shape], the same in every call.

    Args:
      shape: (batch, tokens).
      vocab_size: exclusive upper bound of the ids.
    """
    return np.random.default_rng(0).integers(0, vocab_size, shape)


def example_conversation(tokenizer: Tokenizer) -> np.ndarray:
    """Returns the token ids int[T] of the question TEXT by the chat template."""
    question = (Segment(TEXT, False, role="user"),)
    sample = Sample(None, question, awaits_answer=True)
    num_tokens = count_tokens(sample, tokenizer)
    return encode_sample(sample, tokenizer, num_tokens)["tokens"]


def images_of(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns pixel_values in hive_jax's layout, float32[B, size, size, 3]."""
    return inputs["pixel_values"].transpose(0, 2, 3, 1)
