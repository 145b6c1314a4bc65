"""Text generation: batched prompts, a KV cache, few compiled shapes.

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
from hive_jax.data.sample_encoding import count_tokens, encode_sample
from hive_jax.data.tokenizer import Tokenizer
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError
from hive_jax.models.hive import Hive, unstack_layers
from hive_jax.training import objectives, sharding

# Prompts are padded to 16 tokens or the next power of two, so that few programs are
# compiled and at most half of a longer row is padding.
_MIN_LENGTH = 16
# End of every text in the training data, but for conversations by a chat template.
END = "\n"


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Sampling settings.

    Attributes:
      max_new_tokens: upper limit of generated tokens.
      temperature: softmax temperature; 0 for greedy decoding.
      top_p: probability mass of nucleus sampling.
      seed: random seed; the samples of a prompt also depend on its `number`.
      stop: strings that end an answer, besides the EOS token, and a newline or the end
        token of the chat template.
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
    """Prompt of an image, or none, followed by a text.

    Attributes:
      text: question; empty to ask for a caption.
      image: uint8[size, size, 3] in the model's image size, or None.
      number: index of the prompt, folded into the random seed: equal prompts with other
        numbers are sampled independently.
      history: earlier (question, answer) pairs, for a chat template.
    """

    text: str
    image: np.ndarray | None = None
    number: int = 0
    history: tuple[tuple[str, str], ...] = ()

    def sample(self, chat: bool = False) -> Sample:
        """Returns the prompt as a training sample without supervised tokens.

        Args:
          chat: as a conversation, with roles.
        """
        if chat:
            turns = [("user", self.text)]
            for question, answer in reversed(self.history):
                turns = [("user", question), ("assistant", answer), *turns]
            messages = (Segment(text, False, role=role) for role, text in turns)
            return Sample(self.image, tuple(messages), awaits_answer=True)
        words = self.text.strip()
        text = f"{words}{END}" if words else ""
        return Sample(self.image, (Segment(text, target=False),))


class Generator:
    """Generates texts after prompts; compiles once per padded length and batch size.

    Rows are padded on the right, and each row continues at its own last token, so that an
    answer does not depend on the other prompts of its batch.

    Args:
      config: config of the run that trained `params`.
      params: nested dict of parameters, in checkpoint layout.
      tokenizer: tokenizer of the run.
      decoding: sampling settings.
      mesh: devices to split batches over; None for one device.
      chat: whether prompts are conversations by the tokenizer's chat template, as in
        the training.

    Raises:
      ConfigError: the model has no decoder.
      DataError: the chat template cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        params: dict,
        tokenizer: Tokenizer,
        decoding: Decoding,
        mesh: Mesh | None = None,
        chat: bool = False,
    ):
        model = objectives.build_model(config, mesh)
        if not isinstance(model, Hive):
            raise ConfigError(
                f"{config.name} has the objective {config.objective!r} and no decoder; "
                "expected a run of the objective 'caption'"
            )
        self.tokenizer, self.decoding, self._mesh = tokenizer, decoding, mesh
        self.chat, self.image_size = chat, config.model.image_size
        self.sees_images = config.model.fusion_kind.uses_image
        # Any token that contains a stop string ends the text, alone or with other
        # letters; the text is cut at the string when it is decoded.
        self._stop = decoding.stop if chat else (END, *decoding.stop)
        ends = tokenizer.end_ids.union(*map(tokenizer.ids_with, self._stop))
        if chat:
            ends |= {tokenizer.chat_end_id}
        vocab_size = config.model.decoder.vocab_size
        # The embedding table may be padded beyond the tokenizer's vocabulary. Such ids, and
        # special tokens that do not end a text, must never be sampled.
        written = np.arange(vocab_size) < tokenizer.vocab_size
        special = [id for id in tokenizer.special_ids - ends if id < vocab_size]
        written[special] = False
        if chat:  # which may be after the vocabulary of text
            written[tokenizer.chat_end_id] = True
        # Once, ahead of the loop over tokens: see `decoder.unstack_layers`.
        self._params = jax.jit(unstack_layers)(params)
        self._generate = jax.jit(
            make_generate(model, decoding, np.array(sorted(ends)), written)
        )

    def length(self, prompt: Prompt) -> int:
        """Returns the number of tokens a prompt is padded to.

        Raises:
          DataError: the prompt has no tokens.
        """
        count = count_tokens(prompt.sample(self.chat), self.tokenizer)
        if not count:
            raise DataError(
                "the prompt is empty, and the tokenizer has no begin token; expected "
                "some text"
            )
        # The smallest power of two that is not below `count`.
        return max(_MIN_LENGTH, 1 << (count - 1).bit_length())

    def __call__(self, prompts: Sequence[Prompt], batch_size: int = 0) -> list[str]:
        """Generates a text for each prompt, stripped of stop strings and white space.

        Args:
          prompts: at most `batch_size` prompts.
          batch_size: number of rows of the compiled program, to avoid recompiling for a
            smaller last batch; 0 for the number of prompts.

        Raises:
          DataError: a prompt has no tokens, or an image of another shape or dtype.
        """
        ids = self.ids(prompts, batch_size)
        texts = [self.tokenizer.decode(row) for row in ids]
        # The first stop string of all ends the text, whatever their order.
        for stop in self._stop:
            texts = [text.split(stop)[0] for text in texts]
        return [text.strip() for text in texts]

    def ids(self, prompts: Sequence[Prompt], batch_size: int = 0) -> list[list[int]]:
        """Generates token ids for each prompt, including the final EOS or stop token.

        Args:
          prompts: at most `batch_size` prompts.
          batch_size: number of rows of the compiled program; 0 for the number of prompts.

        Returns:
          At most `max_new_tokens` ids for each prompt.

        Raises:
          DataError: a prompt has no tokens, or an image of another shape or dtype.
        """
        length = max(map(self.length, prompts))
        # The longest prompt decides the length; shorter ones are padded on the right.
        num_rows = batch_size or len(prompts)
        if self._mesh is not None:
            num_rows = sharding.round_up(self._mesh, num_rows)
        samples = [prompt.sample(self.chat) for prompt in prompts]
        encoded = [encode_sample(one, self.tokenizer, length) for one in samples]
        # A prompt without an image has a mask of zeros, so that these pixels do not
        # count.
        blank = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        images = [blank if p.image is None else p.image for p in prompts]
        for prompt, image in zip(prompts, images, strict=True):
            if image.shape != blank.shape or image.dtype != blank.dtype:
                raise DataError(
                    f"the image of prompt {prompt.number} is {image.dtype}"
                    f"{list(image.shape)}; expected uint8{list(blank.shape)}"
                )
        # Without padding: generation continues after the last of these tokens.
        lengths = [count_tokens(one, self.tokenizer) for one in samples]
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
        # Without the rows that fill the batch.
        pairs = zip(tokens[: len(prompts)], counts[: len(prompts)], strict=True)
        return [row[:count].tolist() for row, count in pairs]

    def _to_device(self, rows: list, count: int) -> jax.Array:
        """Stacks rows into an array of `count` rows, padded by copies of the first."""
        array = np.stack([*rows, *rows[:1] * (count - len(rows))])
        # Python integers become int64 arrays, which JAX does not have by default.
        if array.dtype == np.int64:
            array = array.astype(np.int32)
        if self._mesh is None:
            return jnp.asarray(array)
        return jax.device_put(array, sharding.batch_sharding(self._mesh, count))


def make_generate(
    model: Hive, decoding: Decoding, ends: np.ndarray, written: np.ndarray
) -> Callable:
    """Returns the generation function: prefill, then a loop of `decode_step`.

    It maps (params, images uint8[B, size, size, 3], tokens int32[B, T], image_mask
    bool[B, T], lengths int32[B], numbers int32[B]) to tokens int32[B, max_new_tokens]
    and the number of tokens generated in each row, int32[B].

    Args:
      model: model, as built from the config of the run.
      decoding: sampling settings.
      ends: int[K], ids of the tokens that end a text.
      written: bool[V], True for tokens that may be generated.
    """

    def choose(hidden, params, numbers, step):
        """Samples tokens int32[B] from hidden states [B, E]."""
        # [B, 1, E] -> [B, 1, V] -> [B, V]
        logits = model.apply({"params": params}, hidden[:, None], method="logits")[:, 0]
        logits = jnp.where(written[None], logits, -jnp.inf)
        if not decoding.temperature:
            return logits.argmax(-1).astype(jnp.int32)
        # A key per step and prompt number, so that samples do not depend on batching.
        key = jax.random.fold_in(jax.random.key(decoding.seed), step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        logits = nucleus(logits / decoding.temperature, decoding.top_p)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)

    def generate(params, images, tokens, image_mask, lengths, numbers):
        variables = {"params": params}
        # Prefill: image and prompt fill the cache, which has room for all new tokens.
        images = objectives.normalize_images(images)
        max_new_tokens = decoding.max_new_tokens
        hidden, position, state = model.apply(
            variables, images, tokens, image_mask, max_new_tokens, method="prefill"
        )
        # Start from the last token of each row instead of the padding behind it.
        last = (lengths - 1)[:, None]
        position = jnp.take_along_axis(position, last, axis=1)
        hidden = jnp.take_along_axis(hidden, last[..., None], axis=1)[:, 0]

        # A `while_loop` and not a scan: it ends when all rows have ended.
        def unfinished(carry):
            step, _, _, _, done, _, _ = carry
            return (step < max_new_tokens) & ~done.all()

        def decode(carry):
            step, hidden, position, state, done, out, count = carry
            token = choose(hidden, params, numbers, step)
            # Rows that have ended run on, because shapes are static; what they produce
            # is not counted.
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
    """Restricts logits to the nucleus (Holtzman et al., arXiv 1904.09751).

    The nucleus is the smallest set of likeliest tokens whose total probability reaches
    `top_p`; it has at least one token.

    Args:
      logits: float[B, V].
      top_p: probability mass, above 0 and at most 1.

    Returns:
      float[B, V], -inf outside the nucleus.
    """
    if top_p == 1.0:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    probability = jax.nn.softmax(descending, axis=-1)
    # Exclusive cumulative sum: a token stays if those before it fall short of top_p.
    is_in_nucleus = jnp.cumsum(probability, axis=-1) - probability < top_p
    threshold = jnp.where(is_in_nucleus, descending, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
