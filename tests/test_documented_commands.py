"""The commands of the pages that need no network, GPU or own files.

The commands run in the order of the pages, in one process, with few steps and samples.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In this order: later pages use the runs of earlier ones.
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "quickstart",
            "data",
            "evaluation",
            "weights",
            "pictures",
            "planning",
            "recipes",
            "performance",
        )
    ),
)
# "MODULE" or "MODULE SUBCOMMAND" -> arguments that make it quick, unless the command sets
# the same key.
QUICK = {
    "hive_jax.train": (
        "--config.total_steps=1",
        "--config.batch_size=16",
        "--config.data.validation_size=8",
    ),
    "hive_jax.probe": (
        "--config.epochs=1",
        "--config.num_seeds=1",
        "--config.train=tabletop:classes,take=first:64",
        "--config.test=tabletop:classes,split=test,take=first:64",
    ),
    "tools.visualize": ("--scenes=1",),
    "tools.benchmark flops": ("--size=micro",),
    "tools.tabletop benchmarks": ("--count=100",),
}
RUNNER = """
import json, runpy, sys

for module, arguments in json.load(sys.stdin):
    print("+", module, *arguments, flush=True)
    main = runpy.run_module(module, run_name="documented")["main"]
    code = main(arguments)
    if code:
        sys.exit(f"exit code {code}")
"""


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's bash blocks without a comment such as `needs: gpu`."""
    blocks = re.finditer(
        r"(?P<mark><!--[^\n]*-->\s*\n)?```bash\n(?P<text>.*?)```",
        page.read_text("utf-8"),
        re.DOTALL,
    )
    for block in blocks:
        if not block["mark"]:
            text = re.sub(r"\\\n\s*", "", block["text"])
            # A command with a here-document is one command of many lines.
            yield from re.findall(
                r"^[^\n]*<<'EOF'\n.*?^EOF$|^[^\n#]+$", text, re.MULTILINE | re.DOTALL
            )


def as_module(command: str) -> tuple[str, list[str]] | None:
    """(module, arguments) of a command that runs one; None for a shell command, or one
    with environment variables of its own."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        module, arguments = words[2], words[3:]
    elif words[0] == "python" and words[1].startswith("tools/"):
        module = words[1].removesuffix(".py").replace("/", ".")
        arguments = words[2:]
    else:
        return None
    keys = {argument.partition("=")[0] for argument in arguments}
    subcommand = " ".join([module, *arguments[:1]])
    quick = QUICK.get(module) or QUICK.get(subcommand, ())
    if ":retrieval" in command:  # has texts and no classes
        quick = quick[:2]
    return module, arguments + [o for o in quick if o.partition("=")[0] not in keys]


def test_documented_commands_run(tmp_path):
    for name in ("configs", "docs", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    # With the eight devices of all tests, which a plan for eight needs in one process.
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    modules = []

    def run_modules():
        if modules:
            subprocess.run(
                [sys.executable, "-c", RUNNER],
                input=json.dumps(modules),
                text=True,
                check=True,
                cwd=tmp_path,
                env=environment,
            )
            modules.clear()

    seen = set()
    for page in PAGES:
        for command in commands(ROOT / page):
            if command in seen:
                continue
            seen.add(command)
            if module := as_module(command):
                modules.append(module)
                continue
            run_modules()
            subprocess.run(
                ["bash", "-ec", command], check=True, cwd=tmp_path, env=environment
            )
    run_modules()
    assert (tmp_path / "workdir/stage3/result.json").is_file()
