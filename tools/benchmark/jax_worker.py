"""Trains with hive_jax on request; `worker_process.py` has the protocol.

python -m tools.benchmark.jax_worker JOB.json

The job: `config`, a RunConfig as a tree; `weights`, a folder that `open_hive` reads;
`batch`, an .npz with the fields of a Batch.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from hive_jax.config import MeshConfig, from_dict
from hive_jax.data.batch import Batch
from hive_jax.training import sharding
from hive_jax.training.train_step import Program
from hive_jax.weights.sources import open_hive


def main(job_path: str) -> int:
    # Line by line, because the other end waits for each answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print, which would be taken for answers
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    try:
        train = _prepared(job)
        device = jax.devices()[0]
        # After the weights are loaded: loading is not timed.
        about = {
            "device": device.device_kind,
            "versions": {"python": platform.python_version(), "jax": jax.__version__},
        }
        print(json.dumps({"ready": about}), file=answers)
        for line in sys.stdin:
            start = time.perf_counter()
            losses = train(json.loads(line)["steps"])
            seconds = (time.perf_counter() - start) / len(losses)
            memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
            answer = {"seconds": seconds, "losses": losses, "peak_bytes": memory}
            print(json.dumps(answer), file=answers)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(json.dumps({"out_of_memory": str(error)[:500]}), file=answers)
    return 0


def _prepared(job: dict) -> Callable[[int], list[float]]:
    """Returns a function that makes some train steps and returns their losses."""
    config = from_dict(job["config"])
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    program = Program(config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_params)
    params = open_hive(job["weights"]).params()
    state = program.start(jax.device_put(params, shardings))
    with np.load(job["batch"]) as arrays:
        batch = jax.device_put(Batch(**arrays), program.batch.image.sharding)

    def train(steps: int) -> list[float]:
        nonlocal state
        losses = []
        for _ in range(steps):
            state, metrics = program.train_step(state, (batch,))
            # Still on the device: float() here would wait in every step.
            losses.append(metrics["loss"])
        jax.block_until_ready(state)
        return [float(loss) for loss in losses]

    return train


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
