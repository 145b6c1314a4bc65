"""Console output: text tables."""

from hive_jax.console import text_table


def test_table_columns_align():
    text = text_table(("group", "count"), [("img", "1,000"), ("llm/layers", "7")])
    assert text.splitlines() == [
        "group       count",
        "-----------------",
        "img         1,000",
        "llm/layers      7",
    ]
