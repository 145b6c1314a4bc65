"""Files that derive from a run are replaced if they are spoilt."""

import json
import os

import pytest

from hive_jax.training.workdir import is_final, set_aside_unusable


def test_files_and_folders_of_the_wrong_kind_are_renamed(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "metrics.jsonl/precious").write_text("kept")
    (tmp_path / "tensorboard").write_text("kept")
    (tmp_path / "tokenizer").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "result.json")
    (tmp_path / "config.json").write_text("{}")
    set_aside_unusable(tmp_path)
    names = {path.name.partition(".damaged-")[0] for path in tmp_path.iterdir()}
    assert names == {
        *("metrics.jsonl", "tensorboard", "tokenizer", "result.json", "config.json")
    }
    assert (tmp_path / "config.json").exists()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert [f.read_text() for f in tmp_path.glob("*.damaged-*/precious")] == ["kept"]
    output = capsys.readouterr().out
    assert output.count("written anew") == 4
    assert (
        "metrics.jsonl is not a file" in output and "tensorboard is not a f" in output
    )


@pytest.mark.parametrize(
    "content", [b"", b"5", b"null", b"{}", b'{"step": "x"}', b'{"st', b"\xff" * 9]
)
def test_a_spoilt_result_is_written_anew(tmp_path, content, capsys):
    path = tmp_path / "result.json"
    assert not is_final(path, 6)
    path.write_text(json.dumps({"step": 6, "validation": {"loss": 1.0}}))
    assert is_final(path, 6)
    assert capsys.readouterr().out == ""
    assert not is_final(path, 7)
    path.write_bytes(content)
    assert not is_final(path, 6)
    assert capsys.readouterr().out.count("written anew") == 2
