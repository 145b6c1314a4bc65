"""Peak FLOP/s: from data sheets where there are some, else measured once a machine."""

import json
import time
from types import SimpleNamespace

import jax
import pytest

from hive_jax.training import peak_flops
from hive_jax.training.flops import step_flops
from hive_jax.training.train_step import Program


def device(kind: str, platform: str = "tpu", process: int = 0):
    return SimpleNamespace(device_kind=kind, platform=platform, process_index=process)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hive_jax/matmul_rate.json"


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_peak_of_the_data_sheet(kind, peak):
    assert peak_flops.peak_flops([device(kind)] * 4) == 4 * peak


def test_no_name_hides_a_longer_one():
    names = list(peak_flops.PEAK_FLOPS)
    for position, name in enumerate(names):
        assert not any(later.startswith(name) for later in names[position + 1 :])


def test_devices_of_a_process_share_its_cores(monkeypatch):
    monkeypatch.setattr(peak_flops, "measured_matmul_rate", lambda: 1e9)
    cpus = [device("cpu", "cpu", process) for process in (0, 0, 0, 1, 1, 1)]
    assert peak_flops.peak_flops(cpus) == 2e9
    assert peak_flops.peak_flops([device("new", "gpu")] * 2) == 2e9


def test_a_machine_is_measured_once(cache, monkeypatch):
    rate = peak_flops.measured_matmul_rate()
    assert 1e8 < rate < 1e14
    assert json.loads(cache.read_text()) == {peak_flops.machine_fingerprint(): rate}
    monkeypatch.setattr(peak_flops, "_measure_matmul_rate", lambda: 1 / 0)
    assert peak_flops.measured_matmul_rate() == rate


def test_another_machine_is_measured_beside_it(cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text('{"another": 5.0}')
    monkeypatch.setattr(peak_flops, "_measure_matmul_rate", lambda: 7.0)
    assert peak_flops.measured_matmul_rate() == 7.0
    rates = {"another": 5.0, peak_flops.machine_fingerprint(): 7.0}
    assert json.loads(cache.read_text()) == rates


@pytest.mark.parametrize("content", ["", "{", "[]", '{"KEY": "fast"}', '{"KEY": -1}'])
def test_a_damaged_cache_is_measured_again(cache, monkeypatch, content):
    cache.parent.mkdir()
    cache.write_text(content.replace("KEY", peak_flops.machine_fingerprint()))
    monkeypatch.setattr(peak_flops, "_measure_matmul_rate", lambda: 7.0)
    assert peak_flops.measured_matmul_rate() == 7.0


@pytest.mark.parametrize("blocked", ["hive_jax", "hive_jax/matmul_rate.json/x"])
def test_a_cache_that_cannot_be_written_costs_nothing(cache, monkeypatch, blocked):
    path = cache.parent.parent / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # a file where a folder belongs, or the reverse
    monkeypatch.setattr(peak_flops, "_measure_matmul_rate", lambda: 7.0)
    assert peak_flops.measured_matmul_rate() == 7.0


def test_the_measurement_is_short(cache):
    peak_flops.measured_matmul_rate()  # compiles
    cache.unlink()
    began = time.perf_counter()
    peak_flops.measured_matmul_rate()
    assert time.perf_counter() - began < 2  # 0.2 s on an idle machine


def test_shorter_texts_are_fewer_flops(tiny_run):
    config = tiny_run()
    mesh = jax.sharding.Mesh([[[jax.devices()[0]]]], ("data", "fsdp", "tensor"))
    assigned = Program(config, mesh).assigned
    whole = step_flops(config, assigned)
    assert step_flops(config, assigned, config.data.num_tokens) == whole
    assert step_flops(config, assigned, config.data.num_tokens // 2) < whole
