"""Connections between the processes of a job, which tell who is lost and end them all.

Every process has a TCP connection to process 0 and sends a heartbeat each second from a
thread of its own. JAX has heartbeats too, but aborts with a C++ stack and the exit code
of a crash, which no launcher takes for a reason to restart.
"""

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from hive_jax.errors import PREEMPTED, UnavailableError

HEARTBEAT_SECONDS = 1
# More than a heartbeat is late on a host that swaps, or whose Python thread holds the
# interpreter's lock in a long call.
SILENCE_SECONDS = 15
# Most errors (bad data, a loss that is not finite) reach all processes. Each of them
# prints its own message before the first one ends the others.
ERROR_GRACE_SECONDS = 5
_CONNECT_SECONDS = 30


class Progress(Protocol):
    """Progress of this process: phases entered, the current phase, and whether it has
    taken too long."""

    count: int
    phase: str

    def overdue(self) -> str | None: ...


class _Connection:
    """Messages over a socket, as JSON lines."""

    def __init__(self, sock: socket.socket):
        # Of reads and writes: the other end sends a heartbeat each second.
        sock.settimeout(SILENCE_SECONDS)
        self._socket, self._file = sock, sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, **message) -> None:
        # The reader of this connection reports a broken one.
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict:
        """Returns the next message; {} if the other end has closed the connection or
        sent no message.

        Raises:
          OSError: the connection is broken, or silent (TimeoutError).
        """
        try:
            message = json.loads(self._file.readline(10_000))
        except ValueError:
            return {}
        return message if isinstance(message, dict) else {}

    def listen(self, handle: Callable[[dict], None]) -> str:
        """Passes messages to `handle` until the connection ends; returns why it did."""
        try:
            while message := self.receive():
                handle(message)
        except TimeoutError:
            return f"it has not answered for {SILENCE_SECONDS} s"
        except OSError as error:
            return f"its connection broke: {error}"
        return "it ended without a message, as if killed"

    def close(self) -> None:
        self._socket.close()


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
    connection: _Connection
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
                connection = _Connection(sock)
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

    def finish(self) -> None:
        self._finished = True

    def fail(self, code: int) -> None:
        """Ends all processes with the exit code of an error of this one."""
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
            time.sleep(HEARTBEAT_SECONDS)
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
            self._end(self._blame(message["overdue"]), PREEMPTED)
        if "lost" in message:
            self._end(message["lost"], PREEMPTED)

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
        self._connection = _Connection(_connect(coordinator))
        self._connection.send(token=coordinator["token"], name=self.name)
        self._start(self._listen)
        self._start(self._watch)

    def finish(self) -> None:
        self._finished = True
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
            time.sleep(HEARTBEAT_SECONDS)
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


def _connect(coordinator: dict) -> socket.socket:
    """Returns a socket connected to the first address that answers."""
    errors = []
    for address in coordinator["addresses"]:
        try:
            return socket.create_connection((address, coordinator["port"]), timeout=5)
        except OSError as error:
            errors.append(f"{address}: {error}")
    raise UnavailableError(
        f"process 0 ({coordinator['host']}) cannot be reached at port "
        f"{coordinator['port']} ({'; '.join(errors)}); allow TCP between all hosts of "
        "the job"
    )


def local_addresses(coordinator_address: str | None) -> list[str]:
    """Returns addresses of this host, the most likely to be reached first.

    Args:
      coordinator_address: "host:port" of process 0 if it was given, which this is.
    """
    addresses = []
    if coordinator_address:
        addresses.append(coordinator_address.rpartition(":")[0].strip("[]"))
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        # No packet is sent: the system chooses the address of the default route.
        probe.connect(("192.0.2.1", 9))
        addresses.append(probe.getsockname()[0])
    return [*dict.fromkeys([*addresses, socket.gethostname()])]
