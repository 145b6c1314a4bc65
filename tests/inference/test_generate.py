"""Writing with a cache against writing without one, and what chooses the tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.generation_runs import TOKENIZER, params, run

from hive_jax.config import MeshConfig
from hive_jax.data.sample_encoding import encode_sample
from hive_jax.errors import ConfigError, DataError
from hive_jax.inference.generate import Decoding, Generator, Prompt, nucleus
from hive_jax.models.execution import Execution, ModelExecution
from hive_jax.training import objectives, sharding

FUSIONS = ("hive", "cascaded", "joint", "self_attention", "none")
GEMMA2 = {
    "attention_softcap": 5.0,
    "final_softcap": 3.0,
    "local_layers": 1,
    "window": 6,
    "rope_factor": 2.0,
    "local_rope_base": 100.0,
}
# An untied head and biases, as Qwen 2 from 7B on; and a rotary embedding as Llama 3's.
QWEN2 = {
    "activation": "silu",
    "norm_offset": 0.0,
    "embed_scale": False,
    "qkv_bias": True,
    "tied_head": False,
    "rope_factor": 4.0,
    "rope_original_length": 32,
}
GREEDY = Decoding(12)
WORDS = ("", "What colour is the star?", "How many objects are there?", "red " * 20)


@functools.cache
def generator(fusion, decoding=GREEDY, **changes):
    made = run(fusion, **changes), params(fusion, **changes)
    return Generator(*made, TOKENIZER, decoding)


def prompts(fusion):
    """Of several lengths, one of them without an image."""
    rng = np.random.default_rng(1)
    images = [*rng.integers(0, 256, (3, 24, 24, 3), np.uint8), None]
    if fusion == "none":
        images = [None] * 4
    return [Prompt(w, i, n) for n, (w, i) in enumerate(zip(WORDS, images))]


@functools.cache
def next_logits(fusion, **changes):
    """(images, tokens, image mask, length) -> logits of the token behind `length`."""
    model = objectives.build_model(run(fusion, **changes))
    weights = {"params": params(fusion, **changes)}

    @jax.jit
    def logits(images, tokens, sees, length):
        hidden = model.apply(weights, images, tokens[None], sees[None])
        return model.apply(weights, hidden, method="logits")[0, length - 1]

    return logits


def without_cache(fusion, prompt, count, **changes):
    """The likeliest tokens, each from all of the text before it read anew."""
    image = prompt.image if prompt.image is not None else np.zeros((24, 24, 3), "u1")
    images = objectives.normalize_images(jnp.asarray(image)[None])
    whole = encode_sample(prompt.sample(), TOKENIZER, 128)
    length = int((whole["tokens"] != TOKENIZER.pad_id).sum())
    written = np.arange(512) < TOKENIZER.vocab_size
    written[[TOKENIZER.pad_id, TOKENIZER.bos_id]] = False
    ends = {TOKENIZER.eos_id, *TOKENIZER.ids_with("\n")}
    tokens, sees = whole["tokens"], whole["image_mask"]
    sees[length:] = prompt.image is not None
    out = []
    while len(out) < count and not ends & set(out):
        logits = next_logits(fusion, **changes)(images, tokens, sees, length)
        out.append(int(jnp.where(written, logits, -jnp.inf).argmax()))
        tokens[length] = out[-1]
        length += 1
    return out


@pytest.mark.parametrize(
    ("fusion", "changes"),
    [
        *((fusion, {}) for fusion in FUSIONS),
        ("hive", GEMMA2),
        ("joint", GEMMA2),
        ("self_attention", GEMMA2),
        ("hive", QWEN2),
        ("self_attention", QWEN2),
    ],
)
def test_the_cache_changes_nothing(fusion, changes):
    found = generator(fusion, **changes).ids(prompts(fusion))
    wanted = [without_cache(fusion, p, 12, **changes) for p in prompts(fusion)]
    assert found == wanted
    assert len(set(map(tuple, found))) >= 3  # and they say something
    assert len({token for row in found for token in row}) >= 6


SAMPLED = Decoding(12, 0.8, 0.9, seed=3)


# That greedy answers of a batch are those of each prompt alone is shown for every fusion
# by test_the_cache_changes_nothing; here other sizes and orders of batches.
@pytest.mark.parametrize(
    ("fusion", "decoding"),
    [("hive", SAMPLED), ("joint", GREEDY), ("self_attention", GREEDY)],
)
def test_a_prompt_has_the_answer_it_has_alone(fusion, decoding):
    write, asked = generator(fusion, decoding), prompts(fusion)
    together = write.ids(asked)
    assert write.ids([*asked[::-1], *asked], batch_size=16) == together[::-1] + together
    assert [write.ids([prompt])[0] for prompt in asked] == together


def test_scanned_layers_write_the_same():
    both = Execution(scan=True, remat="dots")
    execution = ModelExecution(encoder=both, decoder=both)
    scanned = dataclasses.replace(run("hive"), execution=execution)
    write = Generator(scanned, params("hive"), TOKENIZER, Decoding(12))
    assert write.ids(prompts("hive")) == generator("hive").ids(prompts("hive"))


def test_a_mesh_writes_the_same():
    mesh = sharding.make_mesh(MeshConfig(4, 2, 1))
    where = sharding.sharded_params(mesh, params("hive"))
    placed = jax.device_put(
        params("hive"), jax.tree.map(lambda leaf: leaf.sharding, where)
    )
    write = Generator(run("hive"), placed, TOKENIZER, Decoding(12), mesh)
    assert write.ids(prompts("hive")) == generator("hive").ids(prompts("hive"))


def test_the_image_is_seen():
    first, second, *_ = prompts("hive")
    asked = [dataclasses.replace(second, image=p.image) for p in (first, second)]
    one, other = generator("hive").ids(asked)
    assert one != other


def test_seeds_and_temperatures():
    asked = prompts("hive")
    warm = [Decoding(12, 1.0, 1.0, seed) for seed in (0, 0, 1)]
    first, again, other = (generator("hive", d).ids(asked) for d in warm)
    assert first == again != other
    # The likeliest token alone is left of the nucleus, or far ahead in the cold.
    greedy = generator("hive").ids(asked)
    assert generator("hive", Decoding(12, 1.0, 1e-6)).ids(asked) == greedy
    assert generator("hive", Decoding(12, 1e-4)).ids(asked) == greedy


def test_equal_prompts_are_answered_apart_at_a_temperature():
    same = [dataclasses.replace(prompts("hive")[1], number=n) for n in range(4)]
    found = generator("hive", Decoding(12, 1.0)).ids(same)
    assert len(set(map(tuple, found))) == 4


def test_nucleus():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25], [0.4, 0.3, 0.2, 0.1]]))
    kept = np.isfinite(nucleus(logits, 0.7))
    np.testing.assert_array_equal(kept, [[0, 1, 0, 1], [1, 1, 0, 0]])
    assert np.isfinite(nucleus(logits, 1.0)).all()


def test_stop_texts_end_an_answer():
    asked = prompts("none")
    whole = generator("none")(asked)
    text = max(whole, key=len)
    stop = text[len(text) // 2]
    found = generator("none", Decoding(12, stop=(stop,)))(asked)
    assert found == [one.split(stop)[0].strip() for one in whole] != whole


def test_tokens_that_end_a_text():
    ids = TOKENIZER.ids_with("\n")
    assert ids and all("\n" in TOKENIZER.decode([id]) for id in ids)
    assert TOKENIZER.encode("\n")[0][0] in ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_decoding_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**changes)


def test_prompts_that_cannot_be(monkeypatch):
    with pytest.raises(
        DataError, match=r"uint8\[9, 9, 3\]; expected uint8\[24, 24, 3\]"
    ):
        generator("hive")([Prompt("what?", np.zeros((9, 9, 3), np.uint8))])
    with monkeypatch.context() as patch:
        patch.setattr(TOKENIZER, "bos_id", None)
        with pytest.raises(DataError, match="the prompt is empty"):
            generator("hive")([Prompt("")])


def test_towers_do_not_write():
    towers = dataclasses.replace(run("hive"), objective="contrastive")
    with pytest.raises(ConfigError, match="and no decoder; expected a run"):
        Generator(towers, {}, TOKENIZER, Decoding())
