"""Tokenizers of decoders: ids as transformers', special tokens from their settings."""

import json
import shutil

import pytest
from helpers.decoder_tokenizers import (
    to_tokenizer_json,
    write_gpt2,
    write_llama2,
    write_llama3,
    write_qwen2,
    write_t5,
)
from helpers.tower_tokenizers import odd_texts

from hive_jax.data.tokenizer import copy_tokenizer, keep_tokenizer, load_tokenizer
from hive_jax.errors import DataError
from hive_jax.export.tokenizer import export_tokenizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

WRITERS = {
    "gpt2": write_gpt2,
    "qwen2": write_qwen2,
    "llama3": write_llama3,
    "llama2": write_llama2,
    "t5": write_t5,
}
CONVERTED = {f"{name} as json": WRITERS[name] for name in ("llama2", "t5")}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """(kind) -> the folder of a tokenizer."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind.replace(" ", "_"))
            (WRITERS | CONVERTED)[kind](made[kind])
            if kind in CONVERTED:
                to_tokenizer_json(made[kind])
        return made[kind]

    return make


@pytest.mark.parametrize("kind", [*WRITERS, *CONVERTED])
def test_ids_are_those_of_transformers(folder_of, kind):
    """Of 1,000 odd texts, among them names of special and of added tokens."""
    reference = transformers.AutoTokenizer.from_pretrained(
        folder_of(kind), split_special_tokens=True
    )
    tokenizer = load_tokenizer(str(folder_of(kind)))
    names = ["<|im_end|>", "<|eot_id|>", "<tool_call>", "1234567", "  x\n\n\ty", "it's"]
    texts = names + odd_texts(3000)
    if kind in ("llama2", "t5"):
        texts = filter(has_no_special_token, texts)
    if "llama2" in kind:
        # Version 5 alone adds no space before a text that begins with one.
        texts = (text for text in texts if not text.startswith((" ", "▁")))
    texts = [*texts][:1000]
    assert len(texts) == 1000
    wrong = {
        text: (tokenizer.encode(text)[0], expected)
        for text in texts
        if tokenizer.encode(text)[0]
        != (expected := reference(text, add_special_tokens=False).input_ids)
    }
    assert not wrong, (len(wrong), list(wrong.items())[:5])


def has_no_special_token(text):
    """SentencePiece never makes special tokens of a text; the models that transformers
    converts it to do."""
    return not any(name in text for name in ("<s>", "</s>", "<pad>", "<unk>"))


def test_both_formats_of_llama_2_have_the_same_ids(folder_of):
    """Of any text, also one that begins with spaces."""
    model, fast = (
        load_tokenizer(str(folder_of(kind))) for kind in ("llama2", "llama2 as json")
    )
    for text in [" ", "  two", "▁", *filter(has_no_special_token, odd_texts(1000))]:
        assert model.encode(text)[0] == fast.encode(text)[0], text
    assert model.encode("  two")[0][:2] == [model.encode("▁")[0][0]] * 2


# pad, bos, eos, and all ends of generation.
ROLES = {
    "gpt2": (*["<|endoftext|>"] * 3, {"<|endoftext|>"}),
    "qwen2": (
        *("<|endoftext|>", "<|endoftext|>", "<|im_end|>"),
        {"<|im_end|>", "<|endoftext|>"},
    ),
    "llama3": (
        *("<|eot_id|>", "<|begin_of_text|>", "<|eot_id|>"),
        {"<|eot_id|>", "<|end_of_text|>"},
    ),
    "llama2": ("</s>", "<s>", "</s>", {"</s>"}),
    "t5": ("<pad>", None, "</s>", {"</s>"}),
}


@pytest.mark.parametrize("kind", ROLES)
def test_special_tokens_are_those_that_the_settings_declare(folder_of, kind, caplog):
    folder = folder_of(kind)
    shutil.copytree(folder, folder / "copy", dirs_exist_ok=True)  # loaded anew
    tokenizer = load_tokenizer(str(folder / "copy"))
    pad, bos, eos, ends = ROLES[kind]
    assert tokenizer.token_of(tokenizer.pad_id) == pad
    assert (
        tokenizer.bos_id is None
        if bos is None
        else tokenizer.token_of(tokenizer.bos_id) == bos
    )
    assert tokenizer.token_of(tokenizer.eos_id) == eos
    assert {tokenizer.token_of(id) for id in tokenizer.end_ids} == ends
    said = (
        f"has no pad token; padding with {pad!r}, id {tokenizer.pad_id}" in caplog.text
    )
    assert said == (kind in ("gpt2", "llama3", "llama2"))
    text = "a photo of an owl, 42"
    special = [
        id for id in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) if id
    ]
    ids, _ = tokenizer.encode(text)
    assert tokenizer.decode([*special, *ids, *special]) == text
    assert not tokenizer.special_ids & {*ids}
    assert tokenizer.vocab_size > max(*special, *ids)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "llama3", "llama2 as json"])
def test_exported_tokenizers_have_the_same_tokens(folder_of, tmp_path, kind):
    folder = folder_of(kind)
    ours = load_tokenizer(str(folder))
    exported = export_tokenizer(folder / "tokenizer.json")
    exported.write(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in odd_texts(100):
        assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text)[0]]
    ids = theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id
    assert ids == (ours.pad_id, ours.bos_id, ours.eos_id)
    ends = exported.generation_config()["eos_token_id"]
    assert ends[0] == ours.eos_id and ours.end_ids <= {*ends}
    again = load_tokenizer(str(tmp_path))
    assert (again.pad_id, again.bos_id, again.eos_id) == ids


def edited(folder, tmp_path, **changes):
    copied = shutil.copytree(folder, tmp_path / "edited")
    file = copied / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return copied


def test_special_tokens_map_counts_where_the_config_declares_none(folder_of, tmp_path):
    copied = edited(folder_of("llama3"), tmp_path, eos_token=None)
    (copied / "special_tokens_map.json").write_text(
        json.dumps(
            {"eos_token": {"content": "<|end_of_text|>"}, "bos_token": "<|eot_id|>"}
        )
    )
    tokenizer = load_tokenizer(str(copied))
    assert tokenizer.token_of(tokenizer.eos_id) == "<|end_of_text|>"
    assert tokenizer.token_of(tokenizer.bos_id) == "<|begin_of_text|>"


def test_added_tokens_that_the_file_lacks_are_added(folder_of, tmp_path):
    """As a fine-tuning that only wrote the settings leaves them."""
    size = load_tokenizer(str(folder_of("llama3"))).vocab_size
    last = max(load_tokenizer(str(folder_of("llama3"))).special_ids) + 1
    added = {last: {"content": "<|pad|>", "special": True}}
    added[last + 1] = {"content": "[owl]", "special": False}
    copied = edited(
        folder_of("llama3"), tmp_path, pad_token="<|pad|>", added_tokens_decoder=added
    )
    tokenizer = load_tokenizer(str(copied))
    assert tokenizer.pad_id == last
    assert tokenizer.encode("an [owl]")[0][-1] == last + 1
    assert last not in tokenizer.encode("<|pad|>")[0]
    assert tokenizer.vocab_size == last + 2 > size
    reference = transformers.AutoTokenizer.from_pretrained(copied)
    text = "an [owl] sits"
    expected = reference(text, add_special_tokens=False).input_ids
    assert tokenizer.encode(text)[0] == expected


def test_special_tokens_may_follow_a_sentencepiece_model(folder_of, tmp_path):
    """As LLaVA adds its padding to Llama 2's tokens."""
    size = load_tokenizer(str(folder_of("llama2"))).vocab_size
    added = {
        size: {"content": "<image>", "special": True},
        size + 1: {"content": "<pad>", "special": True},
    }
    copied = edited(
        folder_of("llama2"), tmp_path, pad_token="<pad>", added_tokens_decoder=added
    )
    tokenizer = load_tokenizer(str(copied))
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (size + 1, size + 2)
    assert tokenizer.token_of(size) == "<image>"
    ids, _ = tokenizer.encode("an <image> <pad>")
    assert max(ids) < size
    assert tokenizer.decode([size, *ids, size + 1]) == "an <image> <pad>"
    assert tokenizer.ids_with("owl")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama3", {"bos_token": "<start>"}, "bos_token is '<start>', which the vocab"),
        ("llama3", {"eos_token": 7}, "'token' is 7; expected"),
        (
            "llama3",
            {"added_tokens_decoder": {"x": {}}},
            "has 'x': {}; expected id: tok",
        ),
        (
            "llama3",
            {"added_tokens_decoder": {"9999": {"content": "far"}}},
            "gives 'far' the id 9999, and tokenizer.json the id",
        ),
        (
            "llama2",
            {"added_tokens_decoder": {"9999": {"content": "[owl]"}}},
            "adds the tokens ['[owl]'] to tokenizer.model, which cannot hold them",
        ),
    ],
)
def test_settings_that_contradict_the_vocabulary_raise(
    folder_of, tmp_path, kind, changes, message
):
    copied = edited(folder_of(kind), tmp_path, **changes)
    with pytest.raises(DataError) as error:
        load_tokenizer(str(copied))
    assert message in str(error.value)
    assert str(copied) in str(error.value)


@pytest.mark.parametrize("value", ["7", [1, "x"], -1, {"id": 1}])
def test_ids_of_generation_must_be_ids(folder_of, tmp_path, value):
    copied = edited(folder_of("llama3"), tmp_path)
    file = copied / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(DataError, match=r"eos_token_id is .*; expected a token id"):
        load_tokenizer(str(copied))


def test_other_settings_make_another_tokenizer(folder_of, tmp_path):
    """Of a base model and its chat model, which share tokenizer.json."""
    base = load_tokenizer(str(folder_of("llama3")))
    copied = edited(folder_of("llama3"), tmp_path, eos_token="<|end_of_text|>")
    chat = load_tokenizer(str(copied))
    assert chat.eos_id != base.eos_id and chat.fingerprint != base.fingerprint
    kept = tmp_path / "kept"
    keep_tokenizer(str(folder_of("llama3")), kept)
    assert load_tokenizer(str(kept)).fingerprint == base.fingerprint
    keep_tokenizer(str(copied), kept)
    assert load_tokenizer(str(kept)).fingerprint == chat.fingerprint
    # A settings file that changes is noticed, too.
    file = copied / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"eos_token": "<|eot_id|>"}
    file.write_text(json.dumps(settings))
    assert load_tokenizer(str(copied)).eos_id == base.eos_id


def test_a_file_of_a_folder_comes_with_its_settings(folder_of, tmp_path):
    folder = folder_of("qwen2")
    of_folder = load_tokenizer(str(folder))
    of_file = load_tokenizer(str(folder / "tokenizer.json"))
    assert of_file.fingerprint == of_folder.fingerprint
    copy_tokenizer(str(folder / "tokenizer.json"), tmp_path / "copy")
    assert load_tokenizer(str(tmp_path / "copy")).fingerprint == of_folder.fingerprint
