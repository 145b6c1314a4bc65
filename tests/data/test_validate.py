"""`prepare_data check` says what `train` does with every sample, and of the whole set."""

import json
from pathlib import Path

import pytest
from helpers.llava_sets import (
    encoded,
    photograph,
    record,
    write_damaged_set,
    write_set,
)

from hive_jax import prepare_data
from hive_jax.config import from_dict
from hive_jax.config.cli import get_config
from hive_jax.training.experiment import Experiment
from hive_jax.training.resolve import resolve_config

COUNT = 10


def check(tmp_path: Path, *arguments: str) -> tuple[int, dict, list[dict]]:
    """The exit code, the report and the invalid samples of a check."""
    out = tmp_path / f"report{len(list(tmp_path.glob('report*')))}"
    code = prepare_data.main(["check", *arguments, "--out", str(out)])
    bad = (out / "bad_samples.jsonl").read_text().splitlines()
    report = json.loads((out / "report.json").read_text())
    return code, report, [*map(json.loads, bad)]


def written(tmp_path: Path, records: list[dict]) -> str:
    names = {one["image"] for one in records if one.get("image")}
    files = {
        name: encoded(photograph(i)) for i, name in enumerate(sorted(map(str, names)))
    }
    return write_set(tmp_path, files, records)["folder"]


def chat(question: str, answer: str) -> list[dict]:
    return [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
    ]


def test_what_is_there(tmp_path, capsys):
    source = write_damaged_set(tmp_path, COUNT)["zip"]
    code, report, bad = check(tmp_path, "--from", source, "--num_tokens", "5")
    assert code == 65
    assert report["samples"] == COUNT and report["text_alone"] == 1
    assert report["bad_by_reason"] == {"record": 1, "not an image": 1, "missing": 1}
    assert report["image_modes"] == {"RGB": COUNT - 4}
    assert report["repeated_images"] == 0 and report["cut"] == COUNT - 3
    assert [one["index"] for one in bad] == [6, 8, 9]
    report = tmp_path / "report0"
    assert (report / "tokens.png").read_bytes()[:4] == b"\x89PNG"
    out = capsys.readouterr().out
    assert "cannot be used   3 (1 record, 1 not an image, 1 missing)" in out
    assert "chat.json, record 6: conversations is missing; the record has id, " in out
    assert "3 of 10 samples cannot be used; data.max_bad_fraction allows 1.00%" in out
    arguments = ["check", "--from", source, "--out"]
    assert prepare_data.main([*arguments, str(report)]) == 64  # not over another report
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    for place in (tmp_path / "file", tmp_path / "file/report"):
        assert prepare_data.main([*arguments, str(place)]) == 73
    assert "sample" not in capsys.readouterr().err  # nothing was read for it


def test_texts_that_are_not_read_to_their_end(tmp_path, capsys):
    records = [record(0, conversations=chat("", "a " * 2**17)), record(1)]
    code, report, _ = check(tmp_path, "--from", written(tmp_path, records))
    assert code == 0
    assert report["long_texts"] == report["cut"] == 1
    assert "long texts       1, of which only the start" in capsys.readouterr().out


def test_a_good_set(tmp_path):
    image = encoded(photograph(1, mode="L"))
    files = {record(i)["image"]: image for i in range(4)}
    source = write_set(tmp_path, files, [record(i) for i in range(4)])["folder"]
    code, report, _ = check(tmp_path, "--from", source)
    assert code == 0
    assert report["image_modes"] == {"L": 4} and report["repeated_images"] == 3


def test_check_and_train_agree_on_every_sample(tmp_path, capsys):
    """Same verdicts, tokenizer and length: by default those of stage 1."""
    records = [record(i) for i in range(COUNT)]
    records[1]["conversations"] = chat("word " * 60, "beyond the cut")
    records[2]["conversations"] = chat("word " * 5, "within it")
    records[3]["conversations"] = [{"from": "gpt", "value": " "}]
    records[4]["images"] = [records[4].pop("image"), "0/0.jpg"]
    records[5]["img"] = records[5].pop("image")
    source = written(tmp_path, records) + ",form=chat"
    code, report, bad = check(tmp_path, "--from", source)
    assert code == 65
    verdicts = {one["index"]: one["reason"] for one in bad}
    assert verdicts == {1: "no target", 3: "record", 4: "record", 5: "record"}
    assert report["tokenizer"] == "builtin:tabletop" and report["num_tokens"] == 40
    out = capsys.readouterr().out
    assert "by builtin:tabletop\n" in out and "of more than 40 tokens" in out
    assert "10 samples; expected more than the 512 that data.validation_size" in out

    config = get_config("stage1")
    config.data.source, config.data.validation_size = source, 2
    config.data.max_bad_fraction, config.batch_size = 1.0, 8
    run = Experiment(resolve_config(from_dict(config.to_dict())))
    found = {}
    for loader in (run.loader, run.validation):
        list(loader.batches(0, 1))
        for index, reason in loader.invalid.reasons.items():
            where = loader.source.describe(index)
            found[int(where.split("record ")[1].split(",")[0])] = reason
    assert found == verdicts


def test_the_run_decides_what_is_counted(tmp_path):
    records = [record(i, conversations=chat("word " * 60, "it")) for i in range(3)]
    source = written(tmp_path, records) + ",form=chat"
    arguments = ["--config", "stage1", f"--config.data.source=2*{source}"]
    code, report, _ = check(tmp_path, *arguments, "--config.data.num_tokens=999")
    assert (code, report["num_tokens"], report["samples"]) == (0, 999, 3)
    code, report, _ = check(tmp_path, *arguments, "--num_tokens", "20")
    assert code == 65 and report["bad_by_reason"] == {"no target": 3}


def test_classes_the_rarest_and_equal_captions(tmp_path, capsys):
    for name, count in (("cat", 3), ("dog", 1), ("owl", 2)):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for i in range(count):
            image = encoded(photograph(i))
            (tmp_path / "classes" / name / f"{i}.jpg").write_bytes(image)
    code, report, _ = check(tmp_path, "--from", f"folder:{tmp_path}/classes")
    assert code == 0 and report["classes"] == {"cat": 3, "owl": 2, "dog": 1}
    out = capsys.readouterr().out
    assert "classes          3: cat 3, owl 2, dog 1\n" in out
    assert "rarest class     dog, 1 samples\n" in out and "equal captions" not in out

    records = [record(i) for i in range(4)]
    for one in records[1:]:
        one["conversations"] = chat("Hi", "Hello, how can I help?")
    code, report, _ = check(tmp_path, "--from", written(tmp_path, records))
    assert report["equal_captions"] == {"Hello, how can I help?": 3}
    assert "equal captions   3 of 4: Hello, how can I" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokenizer", "builtin:tabletop"], "--tokenizer is for check"),
        (["--config", "stage1"], "--config is for check"),
        (["check", "--shard_size", "4"], "--shard_size is for convert"),
        (["--preprocessing", "bv_bilinear"], "--preprocessing needs --size"),
        (["--config.seed=3"], "unrecognized arguments: --config.seed=3"),
        (["--size", "0"], "--size must be 1 or more"),
    ],
)
def test_options_without_meaning(arguments, said, capsys):
    with pytest.raises(SystemExit):
        prepare_data.main([*arguments, "--from", "tabletop", "--out", "x"])
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare_data.main(["--out", "x"])
    assert "--from is missing" in capsys.readouterr().err
