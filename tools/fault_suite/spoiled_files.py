"""Files of a finished run, and inputs, as a crash or a person may spoil them."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tools.fault_suite.hostile_files import DEEP


def _write(content: str | bytes) -> Callable[[Path], None]:
    """Returns a function that replaces a file's content."""
    content = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(content)


def _append(content: str | bytes) -> Callable[[Path], None]:
    """Returns a function that adds to a file, or makes it."""
    content = content.encode() if isinstance(content, str) else content

    def append(path: Path) -> None:
        path.write_bytes((path.read_bytes() if path.exists() else b"") + content)

    return append


def _halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _replace_by_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


# Path in the workdir, what is done to it, and a text of the log: the same command then
# ends as before, with code 0.
DERIVED = (
    (
        "metrics.jsonl",
        "invalid UTF-8",
        _append(b'{"step": 1, "\xff": 2}\n'),
        "unreadable",
    ),
    ("metrics.jsonl", "a number", _append("5\n"), "1 unreadable lines removed"),
    ("metrics.jsonl", "an empty object", _append("{}\n"), "1 unreadable lines removed"),
    ("metrics.jsonl", "null", _append("null\n"), "1 unreadable lines removed"),
    ("metrics.jsonl", "a step that is text", _append('{"step": "x"}\n'), "unreadable"),
    ("metrics.jsonl", "a deep line", _append(DEEP + "\n"), "unreadable lines removed"),
    ("metrics.jsonl", "half a line", _append('{"step": 2, "train/lo'), ""),
    ("metrics.jsonl", "empty", _write(""), ""),
    ("metrics.jsonl", "missing", Path.unlink, ""),
    (
        "metrics.jsonl",
        "a folder",
        _replace_by_folder,
        "renamed to metrics.jsonl.damaged",
    ),
    ("result.json", "empty", _write(""), "written anew"),
    ("result.json", "half", _halve, "written anew"),
    ("result.json", "deep", _write(DEEP), "written anew"),
    ("result.json", "a number", _write("5"), "written anew"),
    ("result.json", "of another step", _write('{"step": 9}'), "written anew"),
    ("result.json", "a folder", _replace_by_folder, "renamed to result.json.damaged"),
    ("config.json", "empty", _write(""), ""),
    ("config.json", "a folder", _replace_by_folder, "renamed to config.json.damaged"),
    ("bad_samples.jsonl", "invalid UTF-8", _append(b'{"\xff": 1}\n'), ""),
    ("bad_samples.jsonl", "a list", _append("[1]\n"), ""),
    (
        "bad_samples.jsonl",
        "a folder",
        _replace_by_folder,
        "renamed to bad_samples.jsonl",
    ),
    ("tokenizer/tokenizer.json", "empty", _write(""), "written anew"),
    ("tokenizer/tokenizer.json", "half", _halve, "written anew"),
    ("tokenizer/tokenizer.json", "missing", Path.unlink, "written anew"),
    ("tokenizer", "a file", _replace_by_file, "renamed to tokenizer.damaged"),
    ("tensorboard", "a file", _replace_by_file, "renamed to tensorboard.damaged"),
    ("run.lock", "deep", _write(DEEP), ""),
    ("run.lock", "not JSON", _write(b"\xff\0"), ""),
    ("checkpoints/2/meta/metadata", "empty", _write(""), "checkpoint 2 is damaged"),
    ("checkpoints/2/params", "missing", shutil.rmtree, "checkpoint 2 is damaged"),
)

# Path in the folder of inputs, what is done to it, overrides of the training, and texts
# of the message.
INPUTS = (
    (
        "encoder/config.json",
        "deep",
        _write(DEEP),
        "init_encoder",
        ("nested too deeply",),
    ),
    ("encoder/config.json", "a list", _write("[]"), "init_encoder", ("an object",)),
    ("encoder/config.json", "missing", Path.unlink, "init_encoder", ("config.json",)),
    (
        "encoder/model.safetensors",
        "half",
        _halve,
        "init_encoder",
        ("model.safetensors",),
    ),
    (
        "encoder/model.safetensors",
        "empty",
        _write(""),
        "init_encoder",
        ("safetensors",),
    ),
    ("tokenizer/tokenizer.json", "half", _halve, "data.tokenizer", ("tokenizer.json",)),
    ("chat.json", "half", _halve, "data.source", ("chat.json",)),
    ("chat.json", "deep", _write(DEEP), "data.source", ("chat.json", "too deeply")),
)
