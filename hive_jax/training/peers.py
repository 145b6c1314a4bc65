"""Connections between the processes of a job, which tell who is lost and end them all.

Every process has a TCP connection to process 0 and sends a heartbeat each second from a
thread of its own. JAX has heartbeats too, but aborts with a C++ stack and the exit code
of a crash, which no launcher takes for a reason to restart.
"""

import contextlib
import dataclasses
import functools
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from typing import Protocol

from hive_jax.errors import PREEMPTED, UnavailableError
from hive_jax.training.peer_connection import Connection, connect

HEARTBEAT_SECONDS = 1
# More than a heartbeat is late on a host that swaps, or whose Python thread holds the
# interpreter's lock in a long call.
SILENCE_SECONDS = 15
# Most errors (bad data, a loss that is not finite) reach all processes. Each of them
# prints its own message before the first one ends the others.
ERROR_GRACE_SECONDS = 5
_CONNECT_SECONDS = 30

# A process of its own, which outlives a stop of the one that it guards.
_GUARD = """
import os, select, sys
parent = int(sys.argv[1])
while select.select([0], [], [], float(sys.argv[2]))[0]:
    if not os.read(0, 64):
        sys.exit()
if os.getppid() == parent:
    os.write(2, b"error: this process did not run any more; killed by its guard\\n")
    os.kill(parent, 9)
"""


class Progress(Protocol):
    """Progress of this process: phases entered, the current phase, and whether it has
    taken too long."""

    count: int
    phase: str

    def overdue(self) -> str | None: ...


class _Node:
    """This process among the others.

    Args:
      name: "process N (host)".
      progress: of this process.
    """

    def __init__(self, name: str, progress: Progress):
        self.name, self.progress = name, progress
        self._exit_code = None  # of an error that this process reports itself
        self._finished = False
        self._meetings = self._met = 0
        self._changed = threading.Condition()
        seconds = SILENCE_SECONDS + ERROR_GRACE_SECONDS
        # A stopped process, or one whose interpreter is blocked, cannot end itself, and
        # launchers wait for it. The guard writes to stderr alone.
        command = [sys.executable, "-S", "-c", _GUARD, str(os.getpid()), str(seconds)]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)

    def finish(self) -> None:
        """Ends the watch over this process, which is about to exit."""
        self._finished = True
        self._guard.stdin.close()

    def _beat(self) -> None:
        """Waits for the time of the next heartbeat; tells the guard."""
        time.sleep(HEARTBEAT_SECONDS)
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            self._guard.stdin.write(b".")

    def meet(self) -> None:
        """Returns once every process has called it as often as this one."""
        self._meetings += 1
        self._arrived()
        with self._changed:
            self._changed.wait_for(lambda: self._met >= self._meetings)

    def _all_met(self) -> None:
        with self._changed:
            self._met += 1
            self._changed.notify_all()

    def _exit(self, reason: str, code: int) -> None:
        """Ends this process at once: its main thread may never return."""
        if self._exit_code is None:
            advice = "; the same command resumes the run" if code == PREEMPTED else ""
            print(f"error: {reason}{advice}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code if self._exit_code is None else self._exit_code)

    def _start(self, function, *arguments) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()


@dataclasses.dataclass
class _Peer:
    """A process as process 0 knows it."""

    name: str
    connection: Connection
    count: int = 0
    phase: str = "start-up"
    finished: bool = False
    closed: bool = False


class Coordinator(_Node):
    """Process 0: listens to all others, decides who is lost, and ends all.

    Args:
      host: name of this host.
      num_processes: processes of the job.
      progress: of this process.

    Attributes:
      port: TCP port of the listener.
      token: secret that the others have to send.
    """

    def __init__(self, host: str, num_processes: int, progress: Progress):
        super().__init__(f"process 0 ({host})", progress)
        self._num_processes = num_processes
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=dual, backlog=num_processes
        )
        self.port = self._listener.getsockname()[1]
        self.token = secrets.token_hex(16)
        self._peers: list[_Peer] = []
        self._ending = threading.Lock()
        self._arrivals = 0

    def accept_all(self) -> None:
        """Waits for the connections of all processes.

        Raises:
          UnavailableError: fewer have connected in time.
        """
        deadline = time.monotonic() + _CONNECT_SECONDS
        while len(self._peers) < self._num_processes - 1:
            self._listener.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                sock, _ = self._listener.accept()
                connection = Connection(sock, SILENCE_SECONDS)
                hello = connection.receive()
            except OSError as error:
                raise UnavailableError(
                    f"{len(self._peers)} of {self._num_processes - 1} processes have "
                    f"connected to {self.name}, port {self.port}, in "
                    f"{_CONNECT_SECONDS} s; allow TCP between all hosts of the job"
                ) from error
            if hello.get("token") == self.token:  # other programs scan ports
                self._peers.append(_Peer(hello["name"], connection))
            else:
                connection.close()
        self._listener.close()
        for peer in self._peers:
            self._start(self._listen, peer)
        self._start(self._watch)

    def fail(self, code: int) -> None:
        """Ends all processes with the exit code of an error of this one."""
        if self._ending.locked():  # the others have been ended: that is the error
            return
        self._exit_code = code
        self._start(self._end_after_grace, self.name, code)

    def report_lost(self, reason: str) -> None:
        """Ends all processes, which cannot go on for a reason that names nobody."""
        self._end(reason, PREEMPTED)

    def _arrived(self) -> None:
        with self._changed:
            self._arrivals += 1
            complete = self._arrivals % self._num_processes == 0
        if complete:
            for peer in self._peers:
                peer.connection.send(met=True)
            self._all_met()

    def _watch(self) -> None:
        while True:
            self._beat()
            for peer in self._peers:
                peer.connection.send(beat=True)
            if not self._finished and (reason := self.progress.overdue()):
                self._end(self._blame(reason), PREEMPTED)

    def _listen(self, peer: _Peer) -> None:
        reason = peer.connection.listen(functools.partial(self._handle, peer))
        peer.closed = True
        if not peer.finished:
            self._end(f"{peer.name} is lost: {reason}", PREEMPTED)

    def _handle(self, peer: _Peer, message: dict) -> None:
        if "count" in message:
            peer.count, peer.phase = message["count"], message["phase"]
        if "meet" in message:
            self._arrived()
        if "finished" in message:
            peer.finished = True
        if "failed" in message:
            peer.finished = True
            self._start(self._end_after_grace, peer.name, message["failed"])
        if "overdue" in message:
            self._start(self._end, self._blame(message["overdue"]), PREEMPTED)
        if "lost" in message:
            self._start(self._end, message["lost"], PREEMPTED)

    def _blame(self, reason: str) -> str:
        """Returns a reason with the names of the processes that are behind the rest."""
        states = [(self.progress.count, self.name, self.progress.phase)]
        states += [(p.count, p.name, p.phase) for p in self._peers if not p.finished]
        least = min(states)[0]
        behind = [f"{name} in {ph}" for count, name, ph in states if count == least]
        verb = "is" if len(behind) == 1 else "are"
        return f"{reason}; {', '.join(behind)} {verb} stuck"

    def _end_after_grace(self, name: str, code: int) -> None:
        time.sleep(ERROR_GRACE_SECONDS)
        self._end(f"{name} has ended with exit code {code}; see its own message", code)

    def _end(self, reason: str, code: int) -> None:
        """Ends all processes, this one last: JAX aborts those that lose process 0."""
        self._ending.acquire()  # for good: the first reason counts
        for peer in self._peers:
            peer.connection.send(end=reason, code=code)
        deadline = time.monotonic() + 3
        while not all(p.closed for p in self._peers) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._exit(reason, code)


class Worker(_Node):
    """Any other process.

    Args:
      index: index of this process.
      host: name of this host.
      progress: of this process.
      coordinator: record of process 0: host, addresses, port and token.

    Raises:
      UnavailableError: process 0 cannot be reached at any of its addresses.
    """

    def __init__(self, index: int, host: str, progress: Progress, coordinator: dict):
        super().__init__(f"process {index} ({host})", progress)
        self._coordinator = f"process 0 ({coordinator['host']})"
        self._connection = Connection(connect(coordinator), SILENCE_SECONDS)
        self._connection.send(token=coordinator["token"], name=self.name)
        self._start(self._listen)
        self._start(self._watch)

    def finish(self) -> None:
        super().finish()
        if self._exit_code is None:
            self._connection.send(finished=True)

    def fail(self, code: int) -> None:
        """Ends all processes with the exit code of an error of this one."""
        self._exit_code = code
        self._connection.send(failed=code)

    def report_lost(self, reason: str) -> None:
        """Ends all processes, which cannot go on for a reason that names nobody."""
        self._connection.send(lost=reason)
        time.sleep(ERROR_GRACE_SECONDS)  # process 0 ends this one before that
        self._exit(reason, PREEMPTED)

    def _arrived(self) -> None:
        self._connection.send(meet=True)

    def _watch(self) -> None:
        while True:
            self._beat()
            now = self.progress
            self._connection.send(count=now.count, phase=now.phase)
            if not self._finished and (reason := now.overdue()):
                self._connection.send(overdue=reason)

    def _listen(self) -> None:
        reason = self._connection.listen(self._handle)
        if not self._finished:
            self._exit(f"{self._coordinator} is lost: {reason}", PREEMPTED)

    def _handle(self, message: dict) -> None:
        if "met" in message:
            self._all_met()
        if "end" in message:
            self._exit(message["end"], message["code"])
