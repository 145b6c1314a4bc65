"""The pages: links resolve, block markers are known, quoted messages and numbers are real."""

import ast
import json
import re
from pathlib import Path

import pytest

from hive_jax.evaluation import tables

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
MARKERS = re.compile(r"<!-- (needs: (network|gpu|files|gcp|slurm)|slow) -->")
README_LINES = 200
WINDOW = 4  # consecutive words that identify a message


def without_code(text):
    """Markdown without fenced blocks and code spans."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


def messages():
    """The string literals of the sources, what varies as "..."."""
    for folder in ("hive_jax", "tools", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "...".join(
                        part.value
                        for part in node.values
                        if hasattr(part, "value") and isinstance(part.value, str)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_readme_fits_its_length():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES


def test_the_readme_has_the_command_that_ci_runs():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    (command,) = [line for line in lines if re.match("pip install .*pytest", line)]
    assert command.endswith("-m pytest -q -n 2 --dist loadfile --max-worker-restart 0")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_every_page_of_docs_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert f"](docs/{page.name})" in readme, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_markers_are_known_and_precede_a_block(page):
    lines = page.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("<!-- ") and line not in ("<!-- tree -->", "<!-- /tree -->"):
            assert MARKERS.fullmatch(line), line
            assert lines[number + 1] == "```bash", line


def test_quoted_messages_are_those_of_the_code():
    page = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in quoted for line in block.splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if "error: " in line]
    assert len(errors) >= 20
    known = " . ".join(" ".join(re.findall(r"\w+", text)) for text in messages())
    for line in errors:
        words = re.findall(r"\w+", line)
        windows = (
            " ".join(words[start : start + WINDOW])
            for start in range(len(words) - WINDOW + 1)
        )
        assert any(window in known for window in windows), line


@pytest.mark.parametrize(
    ("folder", "paper"),
    [
        ("reproduction", True),
        ("reproduction_long", True),
        ("reproduction_fusions/gemma", False),
        ("reproduction_fusions/llama", False),
    ],
)
def test_comparisons_are_as_the_command_writes_them(folder, paper):
    path = ROOT / "docs" / folder
    written = (path / "compare.md").read_text("utf-8")
    assert written == tables.markdown(tables.read(path), paper=paper)
    values = json.loads((path / "compare.json").read_text("utf-8"))
    assert values.get("paper") == (tables.PAPER if paper else None)
    scores = written.split("\n\n")[0]
    assert scores in (ROOT / "docs/results.md").read_text("utf-8")
