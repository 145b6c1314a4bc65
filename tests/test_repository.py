"""The README's repository tree and the vocabulary of the code."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def tracked_modules() -> set[str]:
    """Paths of all Python modules of the package, configs and tools."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return {
        path
        for path in listed
        if path.endswith(".py")
        and path.startswith(("hive_jax/", "configs/", "tools/"))
        and (ROOT / path).exists()
        and (path == "hive_jax/__init__.py" or not path.endswith("__init__.py"))
    }


def tree_modules() -> set[str]:
    """Paths that the README's tree names.

    A line `name/  # comment` opens a folder; two spaces below it, lines of names joined
    by commas are its modules.
    """
    block = re.search(
        r"<!-- tree -->\s*```\n(.*?)```\s*<!-- /tree -->", README, re.DOTALL
    )
    folders, modules = [], set()
    for line in block[1].splitlines():
        content = re.sub(r"\s*#.*", "", line)
        depth = (len(content) - len(content.lstrip())) // 2
        folders = folders[:depth]
        if content.endswith("/"):
            folders.append(content.strip().removesuffix("/"))
            continue
        names = [name.strip() for name in content.split(",") if name.strip()]
        modules |= {"/".join([*folders, f"{name}.py"]) for name in names}
    return modules


def test_readme_tree_names_every_module():
    assert tree_modules() == tracked_modules()


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize(
    "term",
    ["prefill", "decode_step", "kv_cache", "sampler", "prefetch", "bucket", "atomic"],
)
def test_code_uses_the_terms_of_the_field(term):
    text = "".join(path.read_text("utf-8") for path in ROOT.glob("hive_jax/**/*.py"))
    assert term in text.lower()


def test_security_names_a_test_for_every_threat():
    rows = [
        line
        for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| threat", "| mis", "| ---"))
    ]
    assert len(rows) > 20
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"\ndef {name}(" in (ROOT / file).read_text("utf-8"), (file, name)
