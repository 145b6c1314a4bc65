"""Python code in a process of its own."""

import os
import subprocess
import sys

from tools.fault_suite import micro_run


def start(code: str, *arguments) -> subprocess.Popen:
    """Starts code that may import hive_jax and the tests' helpers."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{micro_run.ROOT}:{micro_run.ROOT}/tests"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
