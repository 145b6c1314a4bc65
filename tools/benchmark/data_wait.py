"""What data costs a train step: the wait for images, and the padding of texts."""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hive_jax.data.sampler import LengthBucketSampler
from hive_jax.training.metrics import Throughput
from tools.benchmark.cases import Size, case
from tools.benchmark.data_throughput import loader, photograph, sets
from tools.benchmark.grid import Rules
from tools.benchmark.timed_step import Step

# The paper's text length, and shorter lengths that captions fit into.
_BUCKETS, _LONGEST = (32, 48, 64), 77
_CAPTIONS = (10, _LONGEST)  # tokens of a caption, uniformly distributed
_BATCHES = 200


def waiting(
    size: Size, rules: Rules, dtype: str, steps: int, threads: int
) -> Iterator[dict]:
    """Measures the share of each stage's step time that HIVE waits for images.

    Images are JPEG files of 480 x 640 pixels, read from a folder.

    Args:
      size: towers, text length and batch size.
      rules: optimizer rules by stage.
      dtype: of the computation.
      steps: measured steps, after one that is not.
      threads: number of reading threads.

    Yields:
      A row for each stage: "stage", "threads" and the fields of `Throughput`.
    """
    image_size = size.encoder.image_size
    # More than a batch, so that a file is not read twice in a row.
    files = [photograph(number) for number in range(16 * size.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        _, source = next(sets(Path(folder), files, image_size, threads))
        for stage in rules:
            one = Step(case(size, "hive", rules[stage], dtype)).start()
            reader = loader(
                source, image_size, threads, size.batch_size, size.num_tokens
            )
            throughput, metrics = Throughput(size.batch_size), None
            batches = reader.batches(0, steps + 1)
            for step in range(steps + 1):
                wait_start = time.perf_counter()
                micro_batches = tuple(itertools.islice(batches, 1))
                # As in the trainer: a wait counts only where the device had nothing to
                # do.
                throughput.waited(time.perf_counter() - wait_start, metrics)
                metrics = one.step(micro_batches)
                # The first step fills the queues of the loader.
                if step == 0:
                    throughput.since_last(step)
            # The rates are over steps that have ended.
            float(metrics["loss"])
            yield {"stage": stage, "threads": threads, **throughput.since_last(steps)}


def padding(size: Size, rules: Rules, dtype: str, rounds: int) -> Iterator[dict]:
    """Compares padding all texts to the longest with length bucketing.

    Args:
      size: towers and batch size; its text length is not used.
      rules: optimizer rules by stage.
      dtype: of the computation.
      rounds: measurements of each length, taken in turns.

    Yields:
      A row for each stage: seconds and FLOPs of HIVE's step at the longest text, and
      their means over the steps of a bucketed epoch.
    """
    shares = _shares(size.batch_size)
    for stage in rules:
        steps = {}
        for length in shares:
            of_length = dataclasses.replace(size, num_tokens=length)
            steps[length] = Step(case(of_length, "hive", rules[stage], dtype)).start()
        times = {length: [] for length in steps}
        for _ in range(rounds):
            # In turns, as in `grid.step`.
            for length, one in steps.items():
                times[length].append(one.seconds(3) / 3)
        seconds = {n: statistics.median(measured) for n, measured in times.items()}
        yield {
            "stage": stage,
            "padded_to": _LONGEST,
            "seconds": seconds[_LONGEST],
            "buckets": _BUCKETS,
            # The mean over the batches of an epoch, each padded to its bucket's length.
            "seconds_by_length": sum(shares[n] * seconds[n] for n in shares),
            "flops": steps[_LONGEST].flops,
            "flops_by_length": sum(shares[n] * steps[n].flops for n in shares),
        }


def _shares(batch_size: int) -> dict[int, float]:
    """Returns the share of an epoch's batches that is padded to each length."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(_CAPTIONS[0], _CAPTIONS[1] + 1, _BATCHES * batch_size)
    order = LengthBucketSampler(tokens, 0, batch_size=batch_size, buckets=_BUCKETS)
    firsts = range(0, len(tokens), batch_size)
    padded = [order.padded_length(first, _LONGEST) for first in firsts]
    return {n: padded.count(n) / len(padded) for n in (*_BUCKETS, _LONGEST)}
