"""Console output and arguments of commands."""

from hive_jax.console import parse_unique_paths, text_table


def test_table_columns_align():
    text = text_table(("group", "count"), [("img", "1,000"), ("llm/layers", "7")])
    assert text.splitlines() == [
        "group       count",
        "-----------------",
        "img         1,000",
        "llm/layers      7",
    ]


def test_paths_with_an_equals_sign_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    arguments = ["lr=0.1", "runs/lr=0.1/vision", "hive=runs/lr=0.1", "a=b"]
    assert parse_unique_paths(arguments) == {
        "lr=0.1": "lr=0.1",
        "vision": "runs/lr=0.1/vision",
        "hive": "runs/lr=0.1",
        "a": "b",
    }
