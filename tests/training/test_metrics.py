"""What a run writes down, and the figures it is written from."""

import json

import pytest

from hive_jax.training.metrics import MetricsWriter, Throughput


class Result:
    """A device array that is ready, or is not."""

    def __init__(self, ready: bool):
        self.is_ready = lambda: ready


def rows(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_each_step_is_written_once_after_a_kill(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # cut short by a kill
    MetricsWriter(tmp_path, 2).write(3, {"loss": 30.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_full_disk_costs_metrics_and_one_warning(tmp_path, capsys):
    """A folder that is gone fails as a full disk does, and comes back as it does."""
    writer, away = MetricsWriter(tmp_path / "run", 0), tmp_path / "away"
    for step in range(1, 7):
        if step == 2:
            (tmp_path / "run").rename(away)
            (tmp_path / "run").write_text("no folder")
        if step == 5:
            (tmp_path / "run").unlink()
            away.rename(tmp_path / "run")
        writer.write(step, {"loss": 1.0})
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 5, 6]
    assert capsys.readouterr().out.count("metrics are lost until") == 1


@pytest.mark.parametrize(
    "line", [b"5", b"{}", b"null", b'{"step": "x"}', b"\xff\xfe", b"[" * 100_000]
)
def test_damaged_lines_are_removed_with_a_word(tmp_path, line, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b"\n")
    MetricsWriter(tmp_path, 1).write(2, {"loss": 3.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert f"{path}: 1 unreadable lines removed" in capsys.readouterr().out


def test_waiting_counts_only_while_the_device_is_idle(monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    throughput = Throughput(batch_size=4)
    assert throughput.since_last(1) == {}
    throughput.waited(2.0, {"loss": Result(True)})
    throughput.waited(3.0, {"loss": Result(False)})
    throughput.restart = lambda step: None
    rates = throughput.since_last(6)
    assert rates == {"images_per_second": 5 * 4 / 10, "data_wait": 2.0 / 10}


def test_mfu_is_counted_flops_over_time_and_peak(monkeypatch):
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    throughput = Throughput(batch_size=4, peak_flops=100.0)
    throughput.count_flops(1e9)  # compiles: not counted
    throughput.since_last(1)
    for flops in (100.0, 100.0, 50.0):  # texts of two lengths
        throughput.count_flops(flops)
    throughput.restart = lambda step: None
    assert throughput.since_last(4)["mfu"] == 250 / 10 / 100


def test_mfu_is_absent_if_peak_or_flops_are_unknown(monkeypatch):
    for peak, flops in ((None, 100.0), (100.0, None)):
        throughput = Throughput(batch_size=4, peak_flops=peak)
        throughput.since_last(1)
        throughput.count_flops(flops)
        assert "mfu" not in throughput.since_last(2)
