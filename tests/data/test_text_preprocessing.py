"""Inputs of text towers: ids equal transformers' tokenizers, on odd texts."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.tower_tokenizers import (
    SIGLIP2_SETTINGS,
    odd_texts,
    write_siglip,
    write_siglip2,
)

from hive_jax.data.sample_encoding import encode_sample
from hive_jax.data.stored_text_preprocessing import stored_preprocessing
from hive_jax.data.text_preprocessing import own_preprocessing
from hive_jax.data.tokenizer import BUILTIN, load_tokenizer
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.export.tokenizer import export_tokenizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

TEXTS = odd_texts()
GEMMA_DECODER = {"tokenizer_class": "GemmaTokenizerFast", "padding_side": "left"}


def ids_of(tokenizer, num_tokens: int = 64) -> np.ndarray:
    rows = tokenizer(
        TEXTS, padding="max_length", max_length=num_tokens, truncation=True
    )["input_ids"]
    return np.array(rows)


@pytest.mark.filterwarnings("ignore:This sequence already has </s>")
@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>"},
        {"do_lower_case": False, "pad_token": "<unk>", "padding_side": "left"},
    ],
)
def test_siglip(tmp_path, settings):
    write_siglip(tmp_path, settings)
    tokenizer = transformers.SiglipTokenizer.from_pretrained(tmp_path)
    for num_tokens in (64, 7):
        preprocess = stored_preprocessing(str(tmp_path), num_tokens)
        np.testing.assert_array_equal(preprocess(TEXTS), ids_of(tokenizer, num_tokens))
    saved = tmp_path / "saved"  # as this version of transformers writes it
    tokenizer.save_pretrained(saved)
    again = stored_preprocessing(str(saved), 7)
    np.testing.assert_array_equal(again(TEXTS), preprocess(TEXTS))


@pytest.mark.parametrize(
    "settings",
    [
        SIGLIP2_SETTINGS,
        {"tokenizer_class": "Siglip2Tokenizer"},
        {"add_bos_token": False, "add_eos_token": True},
        {"pad_token": "<mask>", "padding_side": "right"},
    ],
)
def test_siglip2(tmp_path, settings):
    write_siglip2(tmp_path, settings)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    tokenizer = transformers.Siglip2Tokenizer.from_pretrained(tmp_path)
    for num_tokens in (64, 7):
        preprocess = stored_preprocessing(str(tmp_path), num_tokens)
        np.testing.assert_array_equal(preprocess(TEXTS), ids_of(tokenizer, num_tokens))
    assert preprocess.lower_case and not preprocess.no_punctuation
    tokenizer.save_pretrained(tmp_path / "saved")
    again = stored_preprocessing(str(tmp_path / "saved"), 7)
    np.testing.assert_array_equal(again(TEXTS), preprocess(TEXTS))


def test_vocabulary_tells_the_family_of_a_tokenizer_elsewhere(tmp_path):
    """As big_vision's .npz need one; a decoder's settings are not the tower's."""
    write_siglip2(tmp_path / "tower")
    write_siglip2(tmp_path / "decoder", GEMMA_DECODER)
    tokenizer = transformers.Siglip2Tokenizer.from_pretrained(tmp_path / "tower")
    for source in ("decoder", "tower/tokenizer.json"):
        preprocess = stored_preprocessing(str(tmp_path / source), 64)
        np.testing.assert_array_equal(preprocess(TEXTS), ids_of(tokenizer))
    write_siglip(tmp_path / "first")
    whole = stored_preprocessing(str(tmp_path / "first"), 64)
    alone = stored_preprocessing(str(tmp_path / "first/spiece.model"), 64)
    np.testing.assert_array_equal(whole(TEXTS), alone(TEXTS))


def test_undetermined_preprocessing_is_an_error(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(MissingInputError, match="holds none of tokenizer.json"):
        stored_preprocessing(str(tmp_path / "none"), 64)
    with pytest.raises(
        CheckpointError, match=r"no tokenizer_class.*Save the tokenizer"
    ):
        stored_preprocessing(BUILTIN_FILE, 64)
    for name, files in (
        ("CLIPTokenizer", "tokenizer_class 'CLIPTokenizer', and tokenizer.json"),
        ("SiglipTokenizer", "tokenizer_class 'SiglipTokenizer'. Save"),
    ):
        folder = tmp_path / name
        if name == "CLIPTokenizer":
            write_siglip2(folder)
        folder.mkdir(exist_ok=True)
        settings = {"tokenizer_class": name}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(CheckpointError, match=f"Looked for .*found {files}"):
            stored_preprocessing(str(folder), 64)
    write_siglip2(tmp_path / "begin", {"add_bos_token": True})
    with pytest.raises(
        CheckpointError, match="add_bos_token is True in tokenizer_conf"
    ):
        stored_preprocessing(str(tmp_path / "begin"), 64)
    write_siglip(tmp_path / "padding", {"pad_token": "<nothing>"})
    with pytest.raises(CheckpointError, match="has no token '<nothing>'"):
        stored_preprocessing(str(tmp_path / "padding"), 64)(["a"])


BUILTIN_FILE = str(Path(__file__).parents[2] / "hive_jax/assets/tokenizer.json")


def encoded(source: str, text: str) -> np.ndarray:
    sample = Sample(None, (Segment(text.strip() + "\n"),))
    return encode_sample(sample, load_tokenizer(source), 64)["tokens"]


@pytest.mark.parametrize("family", ["byte level", "byte fallback", "SentencePiece"])
def test_towers_trained_here_read_what_training_reads(tmp_path, family):
    """And transformers reads the same from an exported folder."""
    source = BUILTIN
    if family == "byte fallback":
        write_siglip2(tmp_path / "tokenizer")
        source = str(tmp_path / "tokenizer/tokenizer.json")
    elif family == "SentencePiece":
        write_siglip(tmp_path / "tokenizer")
        source = str(tmp_path / "tokenizer/spiece.model")
    rows = own_preprocessing(source, 64)(TEXTS)
    np.testing.assert_array_equal(rows, [encoded(source, text) for text in TEXTS])
    if family == "SentencePiece":
        return
    folder = tmp_path / "export"
    folder.mkdir()
    file = BUILTIN_FILE if source == BUILTIN else source
    export_tokenizer(Path(file)).for_text_tower(64).write(folder)
    stored = stored_preprocessing(str(folder), 64)(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    loaded = tokenizer(TEXTS, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(stored, loaded)
    np.testing.assert_array_equal(stored[1:], rows[1:])  # the first text is empty
    assert list(tokenizer(TEXTS[:2])) == ["input_ids"]
