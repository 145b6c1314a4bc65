"""Console output and arguments of commands, and text of others made harmless."""

import ast
import logging
import sys
from pathlib import Path

import pytest

from hive_jax import console
from hive_jax.console import (
    log,
    parse_unique_paths,
    printable,
    report_errors,
    show,
    text_table,
)
from hive_jax.errors import DataError
from tools.fault_suite.hostile_files import ESCAPES as HOSTILE

ROOT = Path(__file__).resolve().parent.parent
ESCAPED = (
    r"\x1b]0;pwn\x07\x1b[2J\x9b2J\x7f\r\x00\x85\u202egpj.exe\u2066\u2028\ud800.jpg"
)


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


def test_control_characters_are_escaped_once():
    assert printable(HOSTILE) == printable(printable(HOSTILE)) == ESCAPED
    for text in ("a\tb\nc", "étage 日本語 😀 العربية", "a\\x1b", ""):
        assert printable(text) == text


def test_everything_printed_is_printable(capsys):
    @report_errors
    def main():
        show(HOSTILE)
        log(HOSTILE)
        # Without the surrogate, which pytest-xdist cannot send in its report.
        name = HOSTILE.replace("\ud800", "")
        logging.getLogger("hive_jax.somewhere").warning("warned of %s", name)
        raise DataError(f"the first: {HOSTILE}")

    assert main() == 65
    output = capsys.readouterr()
    assert output.out == f"{ESCAPED}\n{ESCAPED}\n"
    warned = ESCAPED.replace("\\ud800", "")
    assert output.err == f"warned of {warned}\nerror: the first: {ESCAPED}\n"
    assert not logging.getLogger("hive_jax").handlers


def test_warnings_are_printed_once(capsys):
    """Although JAX's libraries give the root logger a handler."""
    root, other = logging.getLogger(), logging.StreamHandler(sys.stderr)

    @report_errors
    def main():
        logging.getLogger("hive_jax.somewhere").warning("warned of %s", "\x1b[2J")
        return 0

    root.addHandler(other)
    try:
        assert main() == 0
    finally:
        root.removeHandler(other)
    assert capsys.readouterr().err == "warned of \\x1b[2J\n"
    assert logging.getLogger("hive_jax").propagate


def test_the_progress_bar_is_printable(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.progress_bar(HOSTILE, 2) as bar:
        bar.update()
    shown = capsys.readouterr().err
    assert ESCAPED in shown and not {"\x1b", "\x07", "\u202e"} & {*shown}


FILES = [
    p for room in ("hive_jax", "tools") for p in sorted((ROOT / room).rglob("*.py"))
]
# Their output is read by programs, or is argparse's.
OTHERS = {"console.py", "__main__.py", "jax_worker.py", "worker.py", "run_exported.py"}


@pytest.mark.parametrize("room", ["hive_jax", "tools"])
def test_nothing_else_prints(room):
    for path in FILES:
        if path.name in OTHERS or path.relative_to(ROOT).parts[0] != room:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            is_print = isinstance(node, ast.Name) and node.id == "print"
            is_write = (
                isinstance(node, ast.Attribute)
                and node.attr == "write"
                and (isinstance(node.value, ast.Name) and node.value.id == "tqdm")
            )
            assert not is_print and not is_write, f"{path}, line {node.lineno}"
