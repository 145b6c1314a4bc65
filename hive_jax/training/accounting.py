"""The bad samples of a run: the file that names each, and their number in all processes.

A process reads the rows of its own devices, so that it knows of no other's bad samples.
"""

import json
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.console import log
from hive_jax.data.invalid import format_counts
from hive_jax.training.experiment import Experiment


def keep_bad_samples(run: Experiment, folder: Path, start: int) -> None:
    """Names the bad samples of both splits in a file; other processes in theirs.

    A run that goes on at step `start` still has those of the steps before, and those
    of the validation, which reads the same samples each time.
    """
    process = jax.process_index()
    path = folder / (f"bad_samples.{process}.jsonl" if process else "bad_samples.jsonl")
    run.loader.invalid.keep_in(path, start * run.config.batch_size)
    run.validation.invalid.keep_in(path, None if start else 0)


def count_bad_samples(run: Experiment) -> dict[str, dict[str, int]]:
    """Split -> reason -> samples that any process has found, each once; says so too.

    All processes must call it.
    """
    counts = {}
    for split, loader in (("train", run.loader), ("validation", run.validation)):
        for found in gathered([*loader.invalid.reasons.items()]):
            loader.invalid.include(dict(found))
        counts[split] = loader.invalid.counts
        if loader.invalid:
            files = "bad_samples.jsonl" + " and its like" * (jax.process_count() > 1)
            log(
                f"bad samples, {split}: {format_counts(counts[split])}; each is named in {files}"
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
