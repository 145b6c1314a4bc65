"""Tokenizers of own text, trained on datasets in real formats."""

import json

import pytest
from helpers.llava_sets import encoded, photograph

from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import DataError
from hive_jax.make_tokenizer import main

TEXT = "an owl on a wooden table"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owl", "hot_dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for number in range(3):
            image = encoded(photograph(number))
            (tmp_path / "classes" / name / f"{number}.jpg").write_bytes(image)
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": TEXT},
    ]
    records = [
        {"image": f"owl/{number}.jpg", "conversations": turns} for number in range(3)
    ]
    records.append({"image": "owl/0.jpg", "conversations": []})
    (tmp_path / "chat.json").write_text(json.dumps(records))
    rows = "".join(f"owl/{number}.jpg,{TEXT}\n" for number in range(3))
    (tmp_path / "table.csv").write_text(f"image,text\n{rows}")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("llava:chat.json,images=classes", TEXT),
        ("llava:chat.json,images=classes,form=chat", TEXT),
        ("table:table.csv,images=classes", TEXT),
        ("folder:classes", "a photo of an owl"),
    ],
)
def test_tokenizer_of_a_dataset(folder, capsys, source, text):
    assert main(["--from", source, "--out", "own.json", "--vocab_size", "400"]) == 0
    tokenizer = load_tokenizer("own.json")
    ids, _ = tokenizer.encode(text)
    assert len(ids) == len(text.split())  # each word is one token
    assert tokenizer.decode(tokenizer.encode("日本, é")[0]) == "日本, é"
    printed = capsys.readouterr().out
    assert f"{tokenizer.vocab_size} tokens" in printed
    assert ("1 samples are bad" in printed) == source.startswith("llava")


def test_unusable_arguments(folder, capsys):
    with pytest.raises(SystemExit):
        main(["--from", "folder:classes", "--out", "own.json", "--vocab_size", "9"])
    (folder / "own.json").touch()
    assert main(["--from", "folder:classes", "--out", "own.json"]) == 73
    (folder / "bad.csv").write_text("image,text\nowl/0.jpg,\n")
    bad = ["--from", "table:bad.csv,images=classes", "--out", "new.json"]
    assert main(bad) == DataError.exit_code
    assert "no sample has a usable text: 1 record" in capsys.readouterr().err
