"""The times of a run add up, and compilation is counted once."""

import jax
import jax.numpy as jnp
import pytest

from hive_jax.training import run_timing
from hive_jax.training.phase_clock import PhaseClock
from hive_jax.training.run_timing import RunTiming, listen_to_compilations, summary_line


@pytest.fixture
def now(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_timing.time, "monotonic", lambda: now[0])
    return now


def test_phases_add_up_to_the_total(now):
    clock = PhaseClock()
    for phase, seconds in [
        ("the config", 1),
        ("the train step", 2),
        ("reading the metrics", 3),
        ("the train step", 4),
        ("compilation 2 of the train step", 5),
        ("start-up", 0),
    ]:
        clock.enter(phase)
        now[0] += seconds
        if phase == "reading the metrics":
            clock.timing.end_first_step()
    assert clock.timing.summary() == {
        "total": 15.0,
        "first_step": 6.0,
        "seconds": {"imports": 0.0, "config": 1.0, "steps": 9.0, "compiling": 5.0},
    }


def test_compilation_is_no_part_of_its_phase_and_nested_durations_count_once(now):
    timing = RunTiming(now[0])
    now[0] += 1  # the phase's own
    now[0] += 2  # an inner function is traced
    timing.end_compilation("tracing", 2)
    now[0] += 3  # a constant is computed, in the trace of the outer one
    timing.end_compilation("compiling", 3)
    now[0] += 4
    timing.end_compilation("tracing", 9)
    now[0] += 10
    timing.end_compilation("compiling", 10)
    timing.end_phase("the train step")
    expected = {"tracing": 6.0, "compiling": 13.0, "steps": 1.0}
    assert timing.summary() == {"total": 20.0, "first_step": None, "seconds": expected}
    line = "20.0 s: compiling 13.0, tracing 6.0, steps 1.0"
    assert summary_line(timing.summary()) == line


def test_jax_reports_tracing_and_compilation():
    events = []
    listen_to_compilations(lambda name, seconds: events.append((name, seconds)))
    jax.jit(lambda x: x * 3 + 1)(jnp.arange(7))
    assert {name for name, _ in events} == {"tracing", "compiling"}
    assert all(seconds > 0 for _, seconds in events)
