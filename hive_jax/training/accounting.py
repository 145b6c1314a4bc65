"""The bad samples of a run: the file that names each, and their number in all processes.

A process reads the rows of its own devices, so that it knows of no other's bad samples.
"""

import json
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.data.bad import listed
from hive_jax.training.experiment import Experiment
from hive_jax.training.metrics import say


def keep_bad_samples(run: Experiment, folder: Path, start: int) -> None:
    """Names the bad samples of both splits in a file; other processes in theirs.

    A run that goes on at step `start` still has those of the steps before, and those
    of the validation, which reads the same samples each time.
    """
    process = jax.process_index()
    path = folder / (f"bad_samples.{process}.jsonl" if process else "bad_samples.jsonl")
    run.loader.bad.keep_in(path, start * run.config.batch_size)
    run.validation.bad.keep_in(path, None if start else 0)


def count_bad_samples(run: Experiment) -> dict[str, dict[str, int]]:
    """Split -> reason -> samples that any process has found, each once; says so too.

    All processes must call it.
    """
    counts = {}
    for split, loader in (("train", run.loader), ("validation", run.validation)):
        for found in gathered([*loader.bad.reasons.items()]):
            loader.bad.include(dict(found))
        counts[split] = loader.bad.counts
        if loader.bad:
            files = "bad_samples.jsonl" + " and its like" * (jax.process_count() > 1)
            say(
                f"bad samples, {split}: {listed(counts[split])}; each is named in {files}"
            )
    return counts


def gathered(value) -> list:
    """A JSON value of each process, in their order; all processes must call it."""
    if jax.process_count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    room = np.zeros(sizes.max(), np.uint8)
    room[: content.size] = content
    rows = multihost_utils.process_allgather(room)
    return [
        json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)
    ]
