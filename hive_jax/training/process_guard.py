"""A second process that kills this one if it stops to run.

A stopped process, or one whose interpreter is blocked, cannot end itself, and launchers
wait for it.
"""

import os
import select
import signal
import subprocess
import sys


def start(seconds: float) -> subprocess.Popen:
    """Starts the guard of this process; it ends with it, or when `stdin` is closed.

    Args:
      seconds: without a byte on the guard's `stdin`, after which it kills this process.
    """
    # -I and -S: the standard library alone, which starts within milliseconds.
    command = [sys.executable, "-IS", __file__, str(os.getpid()), str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)


def _guard(process: int, seconds: float) -> None:
    # Launchers send these to all processes, and the guarded one takes minutes to save.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while select.select([0], [], [], seconds)[0]:
        if not os.read(0, 64):  # closed
            return
    if os.getppid() == process:
        os.write(2, b"error: this process did not run any more; killed by its guard\n")
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), float(sys.argv[2]))
