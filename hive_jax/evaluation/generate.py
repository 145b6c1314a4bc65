"""Texts written by a model: batches of prompts, a cache, shapes that stay the same.

generator = Generator(config, params, tokenizer, Decoding(max_new_tokens=16))
generator([Prompt("What colour is the star?", image)])  ->  ["red"]
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hive_jax.config import RunConfig
from hive_jax.data.tokenizer import Tokenizer, count_tokens, encode_sample
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError
from hive_jax.models.hive import Hive, unstack_layers
from hive_jax.training import objectives, sharding

_SHORTEST = 16  # tokens that prompts are padded to, or to twice as many, and so on
# What ends every text of this project's data; see hive_jax/data/sources/llava.py.
END = "\n"


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are written.

    Attributes:
      max_new_tokens: after which a text ends in any case.
      temperature: of the choice of each token; 0 takes the likeliest.
      top_p: the choice is among the likeliest tokens with this probability together.
      seed: of the choices; that of a prompt also depends on its number.
      stop: texts that end an answer, besides a newline and the token for the end.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens}; expected 1 or more"
            )
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected above 0, 1 at most")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a text is to follow: the words and an image before them, uint8[size, size, 3]
    of the model's size, or None. Without words it is what the image says."""

    text: str
    image: np.ndarray | None = None
    number: int = 0

    def sample(self) -> Sample:
        words = self.text.strip()
        text = f"{words}{END}" if words else ""
        return Sample(self.image, (Segment(text, target=False),))


class Generator:
    """Writes texts after prompts; compiled once for each length and batch size.

    Rows are padded on the right and each goes on at its own end, so that a prompt's
    answer is the one that it has alone.

    Args:
      config: of the run that trained `params`.
      params: nested dict, as checkpoints keep it.
      mesh: that the rows of batches are split over; None for one device.
    """

    def __init__(
        self,
        config: RunConfig,
        params: dict,
        tokenizer: Tokenizer,
        decoding: Decoding,
        mesh: Mesh | None = None,
    ):
        model = objectives.build_model(config, mesh)
        if not isinstance(model, Hive):
            raise ConfigError(
                f"{config.name} has the objective {config.objective!r}: it has no "
                "decoder to write with; expected a run of the objective 'caption'"
            )
        self.tokenizer, self.decoding, self._mesh = tokenizer, decoding, mesh
        self.image_size = config.model.encoder.image_size
        self.sees_images = config.model.fusion_class.uses_image
        ends = {tokenizer.eos_id} - {None}
        ends = ends.union(*map(tokenizer.ids_with, (END, *decoding.stop)))
        vocab_size = config.model.decoder.vocab_size
        written = np.arange(vocab_size) < tokenizer.vocab_size
        special = {tokenizer.pad_id, tokenizer.bos_id} - ends - {None}
        written[list(special)] = False
        self._params = jax.jit(unstack_layers)(params)
        self._generate = jax.jit(
            make_generate(model, decoding, np.array(sorted(ends)), written)
        )

    def length(self, prompt: Prompt) -> int:
        """Tokens that a prompt is padded to. Raises DataError if it has none."""
        count = count_tokens(prompt.sample(), self.tokenizer)
        if not count:
            raise DataError(
                "an empty prompt, and the tokenizer has no token to begin a text with: "
                "nothing can follow; expected some words"
            )
        return max(_SHORTEST, 1 << (count - 1).bit_length())

    def __call__(self, prompts: Sequence[Prompt], batch_size: int = 0) -> list[str]:
        """A text for each prompt, without the stop text or white space around it.

        Args:
          batch_size: rows of the compiled program; 0 for as many as prompts.
        """
        ids = self.ids(prompts, batch_size)
        texts = [self.tokenizer.decode(row) for row in ids]
        for stop in (END, *self.decoding.stop):
            texts = [text.split(stop)[0] for text in texts]
        return [text.strip() for text in texts]

    def ids(self, prompts: Sequence[Prompt], batch_size: int = 0) -> list[list[int]]:
        """The tokens of each text, the one that ends it included."""
        length = max(map(self.length, prompts))
        wanted = batch_size or len(prompts)
        if self._mesh is not None:
            wanted = sharding.round_up(self._mesh, wanted)
        found = [encode_sample(p.sample(), self.tokenizer, length) for p in prompts]
        blank = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        images = [blank if p.image is None else p.image for p in prompts]
        for prompt, image in zip(prompts, images, strict=True):
            if image.shape != blank.shape or image.dtype != blank.dtype:
                raise DataError(
                    f"the image of prompt {prompt.number} is {image.dtype}"
                    f"{list(image.shape)}; expected uint8{list(blank.shape)}"
                )
        lengths = [count_tokens(p.sample(), self.tokenizer) for p in prompts]
        rows = {
            "images": images,
            "tokens": [row["tokens"] for row in found],
            "image_mask": [row["image_mask"] for row in found],
            "lengths": lengths,
            "numbers": [p.number for p in prompts],
        }
        tokens, counts = self._generate(
            self._params, *(self._placed(row, wanted) for row in rows.values())
        )
        tokens, counts = jax.device_get((tokens, counts))
        pairs = zip(tokens[: len(prompts)], counts[: len(prompts)], strict=True)
        return [row[:count].tolist() for row, count in pairs]

    def _placed(self, rows: list, count: int) -> jax.Array:
        """Rows as an array; the first one stands in for those that lack."""
        array = np.stack([*rows, *rows[:1] * (count - len(rows))])
        if array.dtype == np.int64:
            array = array.astype(np.int32)
        if self._mesh is None:
            return jnp.asarray(array)
        return jax.device_put(array, sharding.batch_sharding(self._mesh, count))


def make_generate(
    model: Hive, decoding: Decoding, ends: np.ndarray, written: np.ndarray
) -> Callable:
    """(params, images uint8, tokens, image_mask, lengths, numbers) -> tokens
    int32[B, max_new_tokens] and how many of each row are written, int32[B].

    Args:
      ends: ids of the tokens that end a text.
      written: bool[V], tokens that may be written.
    """

    def choose(hidden, params, numbers, step):
        """hidden [B, E] -> tokens int32[B]."""
        logits = model.apply({"params": params}, hidden[:, None], method="logits")[:, 0]
        logits = jnp.where(written[None], logits, -jnp.inf)
        if not decoding.temperature:
            return logits.argmax(-1).astype(jnp.int32)
        key = jax.random.fold_in(jax.random.key(decoding.seed), step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        logits = nucleus(logits / decoding.temperature, decoding.top_p)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

    def generate(params, images, tokens, image_mask, lengths, numbers):
        variables = {"params": params}
        images = objectives.normalize_images(images)
        max_new_tokens = decoding.max_new_tokens
        hidden, position, state = model.apply(
            variables, images, tokens, image_mask, max_new_tokens, method="prefill"
        )
        last = (lengths - 1)[:, None]
        position = jnp.take_along_axis(position, last, axis=1)
        hidden = jnp.take_along_axis(hidden, last[..., None], axis=1)[:, 0]

        def unfinished(carry):
            step, _, _, _, done, _, _ = carry
            return (step < max_new_tokens) & ~done.all()

        def decode(carry):
            step, hidden, position, state, done, out, count = carry
            token = choose(hidden, params, numbers, step)
            out = out.at[:, step].set(jnp.where(done, 0, token))
            count = count + ~done
            done = done | jnp.isin(token, ends)
            position = position + 1
            hidden, state = model.apply(
                variables, token[:, None], position, state, method="decode_step"
            )
            return step + 1, hidden[:, 0], position, state, done, out, count

        rows = tokens.shape[0]
        out = jnp.zeros((rows, max_new_tokens), jnp.int32)
        carry = (0, hidden, position, state, jnp.zeros(rows, bool), out, lengths * 0)
        carry = jax.lax.while_loop(unfinished, decode, carry)
        return carry[-2], carry[-1]

    return generate


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """logits[B, V] with -inf for all but the likeliest tokens whose probability together
    reaches top_p (Holtzman et al., arXiv 1904.09751); the likeliest always stays."""
    if top_p == 1.0:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    shares = jax.nn.softmax(descending, axis=-1)
    kept = jnp.cumsum(shares, axis=-1) - shares < top_p
    least = jnp.where(kept, descending, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
