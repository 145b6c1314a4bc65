"""Tokenizers and loaders for the tests of data."""

import pytest
from helpers.numbered_samples import BATCH

from hive_jax.config import MeshConfig
from hive_jax.data.invalid import InvalidSampleLog
from hive_jax.data.loader import Loader
from hive_jax.data.sampler import ShuffledSampler
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.training.sharding import batch_sharding, make_mesh


@pytest.fixture(scope="module")
def tabletop():
    return load_tokenizer("builtin:tabletop")


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    """A SentencePiece model as Gemma's: bytes for unknown characters, <bos>."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = ["a red cube on the table", "the blue ball", "two red cubes, a ball"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def spiece(sentencepiece_file):
    return load_tokenizer(str(sentencepiece_file))


@pytest.fixture(params=["tabletop", "spiece"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def make_loader(tabletop):
    rows = batch_sharding(make_mesh(MeshConfig(data=-1)), BATCH)

    def make(source, sharding=rows, shuffle_seed=0, **changes):
        arguments = {
            "sampler": ShuffledSampler(len(source), shuffle_seed),
            "batch_size": BATCH,
            "num_tokens": 6,
            "image_size": 16,
            "preprocessing": "hf_bicubic",
            "invalid": InvalidSampleLog("train", len(source), 0.5),
            "sharding": sharding,
            "threads": 2,
        }
        return Loader(source, tabletop, **arguments | changes)

    return make
