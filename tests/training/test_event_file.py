"""Event files, read back by TensorBoard."""

import math

import pytest

from hive_jax.training.event_file import EventFile, crc32c


def test_known_checksums():
    """RFC 3720, appendix B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_tensorboard_reads_the_scalars_of_a_resumed_run(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    killed = EventFile(tmp_path, 0)
    for step in (1, 2, 300):
        killed.write(step, {"train/loss": step / 2, "größe": 1e39})
    resumed = EventFile(tmp_path, 2)
    resumed.write(3, {"train/loss": math.nan})
    board = accumulator.EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Tags()["scalars"] == ["train/loss", "größe"]
    loss = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert loss[:2] == [(1, 0.5), (2, 1.0)]
    assert [step for step, _ in loss] == [1, 2, 3] and math.isnan(loss[2][1])
    assert board.Scalars("größe")[0].value == math.inf
