"""Reads hostile names, weights, JSON and images, watched by Python's audit events."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from hive_jax.console import printable
from hive_jax.data.sources.image_store import open_store
from hive_jax.data.transforms import decode
from hive_jax.errors import HiveError
from hive_jax.io import read_json
from hive_jax.train import main as train
from hive_jax.training.stored_run import read_result
from hive_jax.weights import load_decoder, load_encoder
from tools.fault_suite import hostile_files, in_process, micro_run
from tools.fault_suite.figure import Figure, format_counts
from tools.fault_suite.image_files import DAMAGED, JPEG, PNG, encoded, photograph

_LIMIT_SECONDS = 5  # for an input
_WATCHED = ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "os.system")
_WATCHED += ("subprocess.Popen", "os.posix_spawn", "os.exec")
_GOOD_CONTENT = (b"image", b"other")
# Files in a folder of weights that are read as JSON.
_JSON_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
_JSON_FILES += ("hive_export.json", "model.safetensors.index.json")
_NOT_JSON = (
    hostile_files.DEEP,
    '{"a":' * 50_000,
    "1" * 10_000,
    '"\ud800"',
    "{} {}",
    "",
)


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Reads a corpus of hostile inputs, and fuzzed names and images.

    Args:
      count: fuzzed names, and as many fuzzed images.
      folder: for the inputs.
      cache: not used.
    """
    kinds, failures = Counter(), []
    groups = {
        "names": _names(folder / "names", count),
        "weights": _weights(folder / "weights"),
        "JSON files": _json_files(folder / "json"),
        "pipes": _pipes(folder / "pipes"),
        "images": _images(count),
        "escapes on a terminal": _escapes(folder / "escapes"),
    }
    with _audit(folder) as events:
        for kind, inputs in groups.items():
            for name, read in inputs:
                kinds[kind] += 1
                try:
                    with _limit():
                        problem = read()
                except HiveError:
                    problem = ""
                # Any other exception is a traceback for the user.
                except Exception as error:  # noqa: BLE001
                    problem = f"{type(error).__name__}: {error}"
                if problem:
                    failures.append(printable(f"{kind}, {name!r:.80}: {problem}"[:400]))
    failures += sorted(events)
    seen = (
        f"{format_counts(kinds)}: {len(events)} code, network or pickle events; "
        f"{len(failures) - len(events)} escapes, hangs or exceptions"
    )
    return Figure(kinds.total(), seen, failures)


# Hooks stay until the process ends, so there is one, switched by this set.
_watches: list[tuple[str, set]] = []


def _hook(event: str, arguments: tuple) -> None:
    for folder, events in _watches:
        if event in _WATCHED:
            events.add(f"{event} {arguments!r:.100}")
        elif event in ("exec", "compile", "import"):
            code = arguments[1 if event == "compile" else 0]
            where = str(getattr(code, "co_filename", code))
            if where.startswith(folder) or where == "hostile":
                events.add(f"{event} {where}")


@contextlib.contextmanager
def _audit(folder: Path) -> Iterator[set[str]]:
    """Context manager that yields the events that run code of others, or reach out."""
    if not _watches:
        sys.addaudithook(_hook)
    events = set()
    _watches.append((str(folder), events))
    try:
        yield events
    finally:
        _watches.remove((str(folder), events))


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """Context manager that raises TimeoutError after _LIMIT_SECONDS."""

    def expire(number, frame):
        raise TimeoutError(f"more than {_LIMIT_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.alarm(_LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _names(folder: Path, count: int) -> Iterator[tuple[str, Callable]]:
    """Yields (name, function that looks it up) in a folder and in a zip."""
    root, archive = hostile_files.write_images(folder)
    stores = [open_store(str(path), "images") for path in (root, archive)]
    names = [*hostile_files.HOSTILE, *hostile_files.IRREGULAR, *hostile_files.MISSING]
    parts = ["..", ".", "/", "//", "\\", "a", "a.jpg", "folder", "link", "secret.txt"]
    parts += ["~", "\0", "%2e", "C:", "gs://", "\u202e", "", " ", "pipe", "zero", "*"]
    draw = random.Random(0)
    names += ["".join(draw.choices(parts, k=draw.randint(1, 8))) for _ in range(count)]
    for name in names:
        for store in stores:

            def read(store=store, name=name) -> str:
                store.has(name)
                content = store.read(name)
                return "" if content in _GOOD_CONTENT else f"read {content[:20]}"

            yield name, read


def _weights(folder: Path) -> Iterator[tuple[str, Callable]]:
    """Yields files that run code when they are loaded by other programs."""
    hostile_files.write_code(folder)
    for load in (load_encoder, load_decoder):
        for name in ("trusting", "unknown", "model.npz", "model.bin"):
            allowed = name == "trusting" and load is load_encoder

            def read(load=load, name=name, allowed=allowed) -> str:
                load(str(folder / name))
                return "" if allowed else "loaded"

            yield f"{load.__name__} {name}", read


def _json_files(folder: Path) -> Iterator[tuple[str, Callable]]:
    """Yields JSON that is nested deeply, or is none, in files of every kind."""
    hostile_files.write_encoder(folder / "good")
    for file in _JSON_FILES:
        for number, text in enumerate(_NOT_JSON):
            path = folder / f"{file}_{number}"
            shutil.copytree(folder / "good", path)
            (path / file).write_text(text, errors="surrogatepass")
            yield (
                f"{file} {text[:10]}",
                lambda path=path: _nothing(load_encoder(str(path))),
            )
    for number, text in enumerate(_NOT_JSON):
        path = folder / f"result_{number}"
        path.mkdir()
        (path / "result.json").write_text(text, errors="surrogatepass")
        yield f"result.json {text[:10]}", lambda path=path: _nothing(read_result(path))
        yield (
            f"JSON {text[:10]}",
            lambda path=path: _nothing(read_json(path / "result.json")),
        )


def _nothing(unused) -> str:
    return ""


def _pipes(folder: Path) -> Iterator[tuple[str, Callable]]:
    """Yields named pipes in place of files, which nobody writes to."""
    (folder / "folder").mkdir(parents=True)
    for name in ("a.npz", "a", "folder/config.json", "chat.json", "captions.csv"):
        os.mkfifo(folder / name)
    for name in ("a.npz", "a", "folder"):
        yield name, lambda name=name: _nothing(load_encoder(str(folder / name)))
    for source in (f"llava:{folder}/chat.json", f"table:{folder}/captions.csv"):
        yield source, lambda source=source: _refused(f"--config.data.source={source}")


def _refused(*overrides: str) -> str:
    """Returns what is wrong with the refusal of a training; empty if nothing is."""
    arguments = micro_run.train_arguments("stage1.py", "/nonexistent/run", *overrides)
    code, output = in_process.call(train, arguments)
    if code in (64, 65, 66) and "Traceback" not in output:
        return "" if printable(output) == output else "raw control characters"
    return f"code {code}: {output[-300:]}"


def _escapes(folder: Path) -> Iterator[tuple[str, Callable]]:
    """Yields names with control characters, which messages repeat."""
    folder.mkdir(parents=True)
    name = hostile_files.ESCAPES.replace("\ud800", "").replace("\0", "")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": name}]
    record = {"id": name, "image": name, "conversations": turns}
    (folder / "chat.json").write_text(json.dumps([record] * 20))
    sources = (
        f"llava:{folder}/chat.json,images={folder}",
        f"llava:{folder}/{name}.json",
        f"{name}:x",
    )
    for source in sources:
        yield source, lambda source=source: _refused(f"--config.data.source={source}")
    for key in ("init_encoder", "data.tokenizer", "name"):
        yield key, lambda key=key: _refused(f"--config.{key}=/{name}")


def _images(count: int) -> Iterator[tuple[str, Callable]]:
    """Yields damaged images, and good ones with random changes."""
    contents = [content for content, _ in DAMAGED.values()]
    good = [JPEG, PNG, *(encoded(photograph(1), kind) for kind in ("WEBP", "BMP"))]
    draw = random.Random(0)
    for _ in range(count):
        changed = bytearray(draw.choice(good))
        for _ in range(draw.randint(1, 20)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        cut = draw.randrange(len(changed)) if draw.random() < 0.2 else len(changed)
        contents.append(bytes(changed[:cut]))
    for number, content in enumerate(contents):

        def read(content=content) -> str:
            pixels = decode(content, 16, "hf_bicubic", "set, record 1")
            return "" if pixels.shape == (16, 16, 3) else f"shape {pixels.shape}"

        yield f"image {number}", read
