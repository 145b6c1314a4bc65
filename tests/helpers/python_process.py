"""Python code in a process of its own."""

import os
import subprocess
import sys

import kill_loop


def start(code: str, *arguments) -> subprocess.Popen:
    """Starts code that may import hive_jax and the tests' helpers."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{kill_loop.ROOT}:{kill_loop.ROOT}/tests"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
