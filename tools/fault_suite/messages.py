"""Mistakes of users and spoiled files: a message, no traceback, the right exit code."""

import functools
import importlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hive_jax.data.tokenizer import copy_tokenizer
from hive_jax.train import main as train
from tools.fault_suite import hostile_files, in_process, micro_run
from tools.fault_suite.figure import Figure, format_counts
from tools.fault_suite.mistakes import COMMANDS, TRAINING, write_files
from tools.fault_suite.spoiled_files import DERIVED, INPUTS

_MAX_LINES = 15
# kind, name, and a function that returns what was wrong, empty if nothing.
_Case = tuple[str, str, Callable[[], str]]


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Calls commands in this process, with mistakes and with spoiled files.

    Args:
      count: cases, of all.
      folder: for files and runs.
      cache: not used; this process compiles once.
    """
    run, kinds, failures = folder / "run", Counter(), []
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder)
    with in_process.shared_programs():
        code, output = in_process.call(train, _arguments(run))
        if code:
            raise RuntimeError(output)
        cases = [*_mistakes(folder, run), *_derived(folder, run), *_inputs(folder)]
        # Evenly over all kinds.
        for kind, name, check in cases[:: max(1, len(cases) // count)][:count]:
            kinds[kind] += 1
            if problem := check():
                failures.append(f"{kind}, {name}: {problem}")
    seen = f"{format_counts(kinds)}; {len(failures)} without a message, or with a traceback"
    return Figure(kinds.total(), seen, failures)


def _arguments(workdir: Path, *overrides: str) -> list[str]:
    options = ("--config.total_steps=2", "--config.checkpoint_every=1")
    return micro_run.train_arguments("stage1.py", workdir, *options, *overrides)


def _mistakes(folder: Path, run: Path) -> Iterator[_Case]:
    """Yields cases of commands with a mistake."""
    commands = [
        (
            train,
            _arguments(folder / "new", *overrides),
            " ".join(overrides),
            code,
            texts,
        )
        for overrides, code, texts in TRAINING
    ]
    for module, arguments, code, texts in COMMANDS:
        main = importlib.import_module(f"hive_jax.{module}").main
        name = f"{module} {' '.join(arguments)}"
        commands.append((main, arguments, name, code, texts))
    for main, arguments, name, code, texts in commands:
        arguments = [
            text.replace("{folder}", str(folder)).replace("{run}", str(run))
            for text in arguments
        ]
        check = functools.partial(_problem, main, arguments, code, texts)
        yield "mistakes", name, check


def _derived(folder: Path, run: Path) -> Iterator[_Case]:
    """Yields cases in which a file of a finished run is spoiled."""
    for path, damage, spoil, text in DERIVED:

        def check(path=path, spoil=spoil, text=text) -> str:
            workdir = folder / "spoiled"
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.copytree(run, workdir)
            spoil(workdir / path)
            problem = _problem(train, _arguments(workdir), 0, (text,))
            if problem:
                return problem
            results = [(one / "result.json").read_bytes() for one in (workdir, run)]
            return "" if results[0] == results[1] else "another result"

        yield "spoiled files", f"{path}: {damage}", check


def _inputs(folder: Path) -> Iterator[_Case]:
    """Yields cases in which a file that a run reads is spoiled."""
    for path, damage, spoil, key, texts in INPUTS:

        def check(path=path, spoil=spoil, key=key, texts=texts) -> str:
            inputs = folder / "inputs"
            shutil.rmtree(inputs, ignore_errors=True)
            hostile_files.write_encoder(inputs / "encoder")
            copy_tokenizer("builtin:tabletop", inputs / "tokenizer")
            shutil.copy(folder / "chat.json", inputs)
            spoil(inputs / path)
            value = {
                "init_encoder": inputs / "encoder",
                "data.tokenizer": inputs / "tokenizer/tokenizer.json",
                "data.source": f"llava:{inputs}/chat.json,images={folder}/images",
            }[key]
            arguments = _arguments(folder / "new", f"--config.{key}={value}")
            return _problem(train, arguments, (65, 66, 78), texts)

        yield "spoiled files", f"{path}: {damage}", check


def _problem(
    main: Callable, arguments: list[str], code: int | tuple, texts: Sequence[str]
) -> str:
    """Calls a command; returns what is wrong with its end, empty if nothing is.

    Args:
      main: of the command.
      arguments: without the name of the program.
      code: expected exit code, or several.
      texts: that its output must contain.
    """
    got, output = in_process.call(main, arguments)
    codes = code if isinstance(code, tuple) else (code,)
    if "Traceback" in output:
        return output
    if got not in codes:
        return f"code {got}; expected {code}: {output[-500:]}"
    if missing := [text for text in texts if text not in output]:
        return f"{missing} is not in the message: {output[-500:]}"
    message = output[output.find("error: ") :] if got else ""
    if message.count("\n") > _MAX_LINES:
        return f"{message.count(chr(10))} lines: {message}"
    return ""
