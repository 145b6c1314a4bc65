"""Tokenizers from files, and the labels of each token."""

import dataclasses
import json
import re
import shutil
import sys
import time

import numpy as np
import pytest
import tokenizers

from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tabletop.templates import TAG_NAMES
from hive_jax.data.tokenizer import (
    _BUILTIN,
    encode_sample,
    load_tokenizer,
    truncate_text,
)
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import DataError, MissingInputError

COLOUR, SHAPE, COUNT = (TAG_NAMES.index(kind) for kind in ("colour", "shape", "count"))
IMAGE = np.zeros((8, 8, 3), np.uint8)
TEXTS = [
    "",
    " ",
    "a red cube is left of two blue balls.",
    "  spaces   stay \n\t and lines\r\n",
    "naïve café, Größe, øre",
    "漢字かな交じり文 한국어 ไทย עברית",
    "👍🏽 👩‍👩‍👧 🇨🇭",
    "\x00\x7f\ufeff\u200b",
]


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


def test_special_tokens(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)


def test_size_of_the_built_in_vocabulary(tabletop):
    assert tabletop.vocab_size == 512
    ids = [i for text in TEXTS for i in tabletop.encode(text)[0]]
    assert 0 <= min(ids) <= max(ids) < 512


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives(tokenizer, text):
    ids, spans = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(spans)
    special = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode([*special, *ids, *special]) == text
    assert not set(ids) & set(special)


@pytest.mark.parametrize("mode", ["captions", "vague", "questions", "text"])
def test_the_built_in_world_survives(tabletop, mode):
    source = Tabletop("validation", text=mode, with_image=False)
    for index in range(100):
        text = "".join(segment.text for segment in source[index].segments)
        ids, _ = tabletop.encode(text)
        assert tabletop.decode(ids) == text
        assert len(ids) < 64


@pytest.mark.parametrize("text", TEXTS[2:7])
def test_spans_cover_the_text_in_order(tokenizer, text):
    _, spans = tokenizer.encode(text)
    covered = sorted({i for start, end in spans for i in range(start, end)})
    assert covered == list(range(len(text)))
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)


def test_words_of_the_built_in_world_are_single_tokens(tabletop):
    """All but rare plurals."""
    source = Tabletop("validation", with_image=False)
    words = []
    for index in range(100):
        text = "".join(segment.text for segment in source[index].segments)
        words += re.findall(r" ?\w+|\W", text)
    parts = [word for word in words if len(tabletop.encode(word)[0]) > 1]
    assert len(parts) < 0.01 * len(words), set(parts)


def encoded(tokenizer, segments, num_tokens=32, image=IMAGE, **changes):
    """Rows (text of the token, target, image_mask, tag), and the arrays."""
    segments = tuple(Segment(*segment) for segment in segments)
    sample = Sample(image, segments, **changes)
    row = encode_sample(sample, tokenizer, num_tokens, TAG_NAMES)
    assert {key: value.dtype for key, value in row.items()} == {
        "tokens": np.int32,
        "target": np.bool_,
        "image_mask": np.bool_,
        "tag": np.int32,
    }
    assert {value.shape for value in row.values()} == {(num_tokens,)}
    return row


def text_where(row, key, tokenizer, value=True):
    return tokenizer.decode(row["tokens"][row[key] == value])


def test_a_caption(tokenizer):
    row = encoded(
        tokenizer, [("a red cube", True, ((2, 5, "colour"), (6, 10, "shape")))]
    )
    length = 1 + len(tokenizer.encode("a red cube")[0])
    assert row["tokens"][0] == tokenizer.bos_id
    assert (row["tokens"][length:] == tokenizer.pad_id).all()
    assert row["target"].tolist() == [False] + [True] * (length - 1) + [False] * (
        32 - length
    )
    assert row["image_mask"].tolist() == [True] * length + [False] * (32 - length)
    assert text_where(row, "tag", tokenizer, COLOUR).strip() == "red"
    assert text_where(row, "tag", tokenizer, SHAPE).strip() == "cube"
    assert not row["tag"][length:].any()


def test_a_question_and_its_answer(tokenizer):
    row = encoded(
        tokenizer,
        [
            ("the ball is", False),
            (" two", True, ((1, 4, "count"),)),
            (". the cube is", False),
            (" red", True, ((1, 4, "colour"),)),
        ],
    )
    assert text_where(row, "target", tokenizer) == " two red"
    assert text_where(row, "image_mask", tokenizer) == (
        "the ball is two. the cube is red"
    )
    assert text_where(row, "tag", tokenizer, COUNT).strip() == "two"
    assert text_where(row, "tag", tokenizer, COLOUR).strip() == "red"


def test_an_image_in_the_middle(tokenizer):
    segments = [("look at", False), (" the table", False), (" a ball", True)]
    row = encoded(tokenizer, segments, image_before=1)
    assert text_where(row, "image_mask", tokenizer) == " the table a ball"
    assert not row["image_mask"][0]
    assert text_where(row, "target", tokenizer) == " a ball"
    first = encoded(tokenizer, segments, image_before=0)
    assert text_where(first, "image_mask", tokenizer) == "look at the table a ball"
    assert first["image_mask"][0]  # the begin-of-sequence token stands after it
    last = encoded(tokenizer, segments, image_before=2)
    assert text_where(last, "image_mask", tokenizer) == " a ball"


def test_a_sample_without_an_image(tokenizer):
    row = encoded(tokenizer, [("a red", False), (" cube", True)], image=None)
    assert not row["image_mask"].any()
    assert text_where(row, "target", tokenizer) == " cube"


@pytest.mark.parametrize("num_tokens", [2, 3, 5, 8])
def test_text_is_cut(tokenizer, num_tokens):
    segments = [("a red", False), (" cube on the table", True)]
    whole = encoded(tokenizer, segments)
    cut = encoded(tokenizer, segments, num_tokens)
    assert whole["tokens"][num_tokens] != tokenizer.pad_id
    for key, value in cut.items():
        np.testing.assert_array_equal(value, whole[key][:num_tokens])


@pytest.mark.parametrize("piece", ["a red cube ", "x", " ", "漢"])
def test_a_text_of_any_length_costs_no_more_than_a_long_one(tokenizer, piece):
    """What is kept of it is what it begins with, as if all had been tokenised."""
    long = Segment(piece * (40_000 // len(piece)))
    wanted = encode_sample(Sample(IMAGE, (long,)), tokenizer, 24)
    huge = Segment(piece * (30_000_000 // len(piece)))
    segments = (huge, Segment("not read", target=False))
    began = time.perf_counter()
    got = encode_sample(Sample(IMAGE, segments), tokenizer, 24)
    assert time.perf_counter() - began < 5  # the whole takes minutes
    for name, array in got.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_a_text_that_is_not_far_too_long_is_read_to_its_end():
    segments = (Segment("a" * 60_000), Segment("b" * 5536, tags=((0, 9, "colour"),)))
    sample = Sample(IMAGE, segments, image_before=1)
    assert truncate_text(sample, 256) is sample
    more = dataclasses.replace(sample, segments=(*segments, Segment("c")))
    assert truncate_text(more, 257) is more
    cut = truncate_text(more, 256)
    assert [len(segment.text) for segment in cut.segments] == [60_000, 5536, 0]
    assert cut.image_before == 1 and cut.segments[:2] == segments


def test_empty_segments(tokenizer):
    row = encoded(tokenizer, [("", False), ("a ball", True), ("", True)])
    assert text_where(row, "target", tokenizer) == "a ball"
    empty = encoded(tokenizer, [("", True)])
    assert not empty["target"].any()
    assert (empty["tokens"][1:] == tokenizer.pad_id).all()


def test_every_byte_of_a_character_has_its_labels(tokenizer):
    """The tokens of one character share its span, or all but one have none."""
    row = encoded(
        tokenizer, [("é漢", False), ("👍ß", True, ((0, 1, "colour"),)), ("字", False)]
    )
    ids = row["tokens"]
    bytes_of = [len(text.encode()) for text in ("é漢", "👍", "ß", "字")]
    start = 1 + bytes_of[0]
    assert (ids[1 : 1 + sum(bytes_of)] > 3).all()
    assert ids[1 + sum(bytes_of)] == tokenizer.pad_id
    assert np.flatnonzero(row["target"]).tolist() == [*range(start, start + 6)]
    assert np.flatnonzero(row["tag"]).tolist() == [*range(start, start + 4)]
    assert row["image_mask"].sum() == 1 + sum(bytes_of)
    row = encoded(tokenizer, [("é", False), ("漢", True)], image_before=1)
    assert np.flatnonzero(row["image_mask"]).tolist() == [3, 4, 5]


def test_a_token_over_two_segments_is_where_it_ends(tabletop):
    (token, *_), spans = tabletop.encode(" red")
    assert spans == [(0, 4)]
    row = encoded(tabletop, [(" r", False), ("ed", True, ((0, 2, "colour"),))])
    assert row["tokens"][1] == token
    assert (row["target"][1], row["tag"][1]) == (True, COLOUR)
    row = encoded(tabletop, [(" r", True, ((1, 2, "colour"),)), ("ed", False)])
    assert (row["target"][1], row["tag"][1]) == (False, COLOUR)


class WithoutBos:
    """A vocabulary without a begin-of-sequence token: one token a character."""

    pad_id, eos_id, bos_id = 0, 0, None

    def encode(self, text):
        return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]


def test_without_bos_the_first_token_is_never_a_target():
    row = encoded(WithoutBos(), [("ab", True), ("c", False)], 4)
    assert row["tokens"].tolist() == [97, 98, 99, 0]
    assert row["target"].tolist() == [False, True, False, False]
    assert row["image_mask"].tolist() == [True, True, True, False]


def test_a_hugging_face_folder(tabletop, tmp_path):
    shutil.copy(_BUILTIN["builtin:tabletop"], tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.fingerprint == tabletop.fingerprint
    assert loaded.encode(TEXTS[2]) == tabletop.encode(TEXTS[2])


def test_a_folder_with_a_sentencepiece_file(sentencepiece_file, spiece, tmp_path):
    shutil.copy(sentencepiece_file, tmp_path / "spiece.model")
    assert load_tokenizer(str(tmp_path)).fingerprint == spiece.fingerprint


def test_a_fast_file_may_not_cut_or_pad(tmp_path):
    """Settings that a tokenizer.json brings along for other uses."""
    content = json.loads(_BUILTIN["builtin:tabletop"].read_text(encoding="utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    loaded = load_tokenizer(str(path))
    assert loaded.decode(loaded.encode(TEXTS[2])[0]) == TEXTS[2]
    assert len(loaded.encode(TEXTS[2])[0]) < 50


def test_fingerprints_tell_files_apart(tabletop, spiece):
    assert tabletop.fingerprint != spiece.fingerprint
    assert len(tabletop.fingerprint) == 16


@pytest.mark.parametrize("source", ["", "builtin:tabeltop", "nowhere/tokenizer.json"])
def test_missing_files(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    wanted = (
        "holds none of tokenizer.json" if source == "" else "no such file; expected"
    )
    with pytest.raises(MissingInputError, match=wanted):
        load_tokenizer(source)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2", b"\xff\x00binary"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_files_that_are_something_else(tmp_path, name, content):
    if name.endswith(".model"):
        pytest.importorskip("sentencepiece")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_tokenizer(str(tmp_path / name))


def test_a_vocabulary_without_padding(tmp_path):
    content = json.loads(_BUILTIN["builtin:tabletop"].read_text(encoding="utf-8"))
    content["added_tokens"] = []
    for token in ("<pad>", "<eos>", "<bos>"):
        content["model"]["vocab"][token.upper()] = content["model"]["vocab"].pop(token)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="has none of the tokens <pad>, <eos>, </s>"):
        load_tokenizer(str(path))


def test_sentencepiece_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(MissingInputError, match="pip install sentencepiece"):
        load_tokenizer(str(tmp_path))


def test_special_tokens_beyond_the_table_do_not_count(tmp_path):
    """Gemma 3's <image_soft_token> comes after its 262,144 embeddings."""
    tokenizer = tokenizers.Tokenizer.from_file(str(_BUILTIN["builtin:tabletop"]))
    tokenizer.add_special_tokens(["<image_soft_token>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.vocab_size == 512
    ids, _ = loaded.encode("a <image_soft_token> b <eos>")
    assert max(ids) < 512 and loaded.eos_id not in ids
    tokenizer.add_tokens(["quux"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).vocab_size == 514
