"""Tokenizers from files."""

import json
import re
import shutil
import sys

import pytest
import tokenizers

from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tokenizer import _BUILTIN, load_tokenizer
from hive_jax.errors import DataError, MissingInputError

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


def test_a_changed_file_is_loaded_again(tabletop, tmp_path):
    file = tmp_path / "tokenizer.json"
    shutil.copy(_BUILTIN["builtin:tabletop"], file)
    first = load_tokenizer(str(file))
    assert load_tokenizer(str(file)) is first
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(content, indent=1), "utf-8")
    again = load_tokenizer(str(file))
    assert again.fingerprint != first.fingerprint
    assert again.encode("a red star") == first.encode("a red star")


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


def test_a_vocabulary_without_special_tokens(tmp_path, caplog):
    """Pads with id 0, says so, and leaves this token in texts."""
    content = json.loads(_BUILTIN["builtin:tabletop"].read_text(encoding="utf-8"))
    content["added_tokens"] = []
    for token in ("<pad>", "<eos>", "<bos>"):
        content["model"]["vocab"][token.upper()] = content["model"]["vocab"].pop(token)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    loaded = load_tokenizer(str(path))
    assert loaded.pad_id == 0 and loaded.eos_id is loaded.bos_id is None
    assert f"{path} has no pad token; padding with '<PAD>', id 0" in caplog.text
    assert not {0, 1, 2} & loaded.special_ids and not loaded.end_ids
    ids, _ = loaded.encode("a <PAD> cube")
    assert loaded.decode([0, *ids]) == "<PAD>a <PAD> cube"


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
