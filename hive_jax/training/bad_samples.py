"""Invalid samples of a run: one file a process names them, result.json counts them."""

import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from hive_jax.console import log
from hive_jax.data.invalid import format_counts
from hive_jax.training.experiment import Experiment


def record_bad_samples(run: Experiment, folder, start: int) -> None:
    """Opens bad_samples.jsonl (one file a process) for the loaders of both splits.

    A resumed run keeps the training samples of the steps before `start`, and all
    validation samples, for each validation reads the same ones.

    Args:
      run: the run, with a loader for each split.
      folder: path of the run's folder.
      start: step that the run starts from.
    """
    process = jax.process_index()
    path = folder / (f"bad_samples.{process}.jsonl" if process else "bad_samples.jsonl")
    run.loader.invalid.keep_in(path, start * run.config.batch_size)
    run.validation.invalid.keep_in(path, None if start else 0)


def count_bad_samples(run: Experiment) -> dict[str, dict[str, int]]:
    """Logs and returns split -> reason -> number of distinct samples, over all
    processes; all processes must call it."""
    counts = {}
    for split, loader in (("train", run.loader), ("validation", run.validation)):
        # Each process reads samples of its own; pairs, because JSON has no integer
        # keys.
        for reasons in _gather_json([*loader.invalid.reasons.items()]):
            loader.invalid.include(dict(reasons))
        counts[split] = loader.invalid.counts
        if loader.invalid:
            several = jax.process_count() > 1
            files = "bad_samples*.jsonl" if several else "bad_samples.jsonl"
            log(
                f"bad samples, {split}: {format_counts(counts[split])}; each is named "
                f"in {files}"
            )
    return counts


def _gather_json(value) -> list:
    """Returns the JSON value of each process, by process index; all must call it."""
    if jax.process_count() == 1:
        return [value]
    # As bytes: collectives take arrays, not Python values.
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # The collective takes arrays of one shape: pad to the longest value.
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    contents = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(content[:size]))
        for content, size in zip(contents, sizes, strict=True)
    ]
