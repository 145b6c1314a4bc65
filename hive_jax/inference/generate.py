"""Generation: batched prompts, a KV cache, programs of few static shapes.

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

_MIN_LENGTH = 16  # prompts are padded to this many tokens, or 2, 4, 8, ... times that
# Ends every text in this project's data; see hive_jax/data/sources/llava.py.
END = "\n"


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Sampling settings.

    Attributes:
      max_new_tokens: upper limit of generated tokens.
      temperature: softmax temperature; 0 for greedy decoding.
      top_p: probability mass of nucleus sampling.
      seed: random seed; the samples of a prompt also depend on its `number`.
      stop: strings that end an answer, besides a newline and the EOS token.
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
    """An image followed by a text, to be continued.

    Attributes:
      text: a question; empty for a caption.
      image: uint8[size, size, 3] of the model's image size, or None.
      number: varies the random samples of equal prompts.
    """

    text: str
    image: np.ndarray | None = None
    number: int = 0

    def sample(self) -> Sample:
        words = self.text.strip()
        text = f"{words}{END}" if words else ""
        return Sample(self.image, (Segment(text, target=False),))


class Generator:
    """Continues prompts; compiled once for each padded length and batch size.

    Rows are padded on the right, and each continues at its own end, so an answer does
    not depend on the other prompts of its batch.

    Args:
      config: config of the run that trained `params`.
      params: nested dict, in checkpoint layout.
      tokenizer: the one of the run.
      decoding: sampling settings.
      mesh: devices to split batches over; None for one device.
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
        self.image_size = config.model.image_size
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
        """Number of tokens a prompt is padded to. Raises DataError if it has no token."""
        count = count_tokens(prompt.sample(), self.tokenizer)
        if not count:
            raise DataError(
                "an empty prompt, and the tokenizer has no token to begin a text with: "
                "nothing can follow; expected some words"
            )
        return max(_MIN_LENGTH, 1 << (count - 1).bit_length())

    def __call__(self, prompts: Sequence[Prompt], batch_size: int = 0) -> list[str]:
        """Generates a text for each prompt, stripped of stop strings and white space.

        Args:
          prompts: at most `batch_size`.
          batch_size: rows of the compiled program; 0 for the number of prompts.
        """
        ids = self.ids(prompts, batch_size)
        texts = [self.tokenizer.decode(row) for row in ids]
        for stop in (END, *self.decoding.stop):
            texts = [text.split(stop)[0] for text in texts]
        return [text.strip() for text in texts]

    def ids(self, prompts: Sequence[Prompt], batch_size: int = 0) -> list[list[int]]:
        """Generates token ids for each prompt, the final EOS or stop token included."""
        length = max(map(self.length, prompts))
        num_rows = batch_size or len(prompts)
        if self._mesh is not None:
            num_rows = sharding.round_up(self._mesh, num_rows)
        encoded = [encode_sample(p.sample(), self.tokenizer, length) for p in prompts]
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
            "tokens": [row["tokens"] for row in encoded],
            "image_mask": [row["image_mask"] for row in encoded],
            "lengths": lengths,
            "numbers": [p.number for p in prompts],
        }
        tokens, counts = self._generate(
            self._params, *(self._to_device(row, num_rows) for row in rows.values())
        )
        tokens, counts = jax.device_get((tokens, counts))
        pairs = zip(tokens[: len(prompts)], counts[: len(prompts)], strict=True)
        return [row[:count].tolist() for row, count in pairs]

    def _to_device(self, rows: list, count: int) -> jax.Array:
        """Stacks rows into an array of `count`, filled up with copies of the first row."""
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
    probability = jax.nn.softmax(descending, axis=-1)
    kept = jnp.cumsum(probability, axis=-1) - probability < top_p
    least = jnp.where(kept, descending, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)
