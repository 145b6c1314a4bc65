"""Process 0 of a job, which decides who is lost or stuck, and ends all."""

import dataclasses
import functools
import secrets
import socket
import time

from hive_jax.errors import PREEMPTED, UnavailableError
from hive_jax.training import peers
from hive_jax.training.peer_connection import Connection
from hive_jax.training.peers import Process, start_thread
from hive_jax.training.phase_clock import PhaseClock
from hive_jax.training.preemption import release_locks

_CONNECT_SECONDS = 30
# For the others to end, and for locks, which may be on a file system that hangs.
_EXIT_SECONDS = 3


@dataclasses.dataclass(eq=False)
class _Peer:
    """A process as process 0 knows it."""

    name: str
    connection: Connection | None = None  # None: process 0 itself
    count: int = 0
    is_finished: bool = False
    is_closed: bool = False


class Coordinator(Process):
    """Process 0: listens to all others, decides who is lost, and ends all.

    Args:
      host: name of this host.
      num_processes: processes of the job.
      clock: of the phases of this process.

    Attributes:
      port: TCP port of the listener.
      token: secret that the others have to send.
    """

    def __init__(self, host: str, num_processes: int, clock: PhaseClock):
        super().__init__(f"process 0 ({host})", clock)
        self._num_processes = num_processes
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=dual, backlog=num_processes
        )
        self.port = self._listener.getsockname()[1]
        self.token = secrets.token_hex(16)
        self._own = _Peer(self.name)
        self._others: list[_Peer] = []
        self._arrivals = 0

    def accept_all(self) -> None:
        """Waits for the connections of all processes; starts the watch.

        Raises:
          UnavailableError: fewer have connected in time.
        """
        deadline = time.monotonic() + _CONNECT_SECONDS
        missing = set(range(1, self._num_processes))
        while missing:
            self._listener.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                sock, _ = self._listener.accept()
                connection = Connection(sock, peers.SILENCE_SECONDS)
                hello = connection.receive()
            except OSError as error:
                raise UnavailableError(
                    f"process {', '.join(map(str, sorted(missing)))} has not connected to "
                    f"{self.name}, port {self.port}, in {_CONNECT_SECONDS} s; allow TCP "
                    "between all hosts of the job"
                ) from error
            if hello.get("token") == self.token:  # other programs scan ports
                self._others.append(_Peer(hello["name"], connection))
                missing.remove(hello["index"])
            else:
                connection.close()
        self._listener.close()
        for peer in self._others:
            start_thread(self._listen, peer)
        self.start_watch()

    def report(self, **message) -> None:
        """Handles a message of this process."""
        self._handle(self._own, message)

    def _listen(self, peer: _Peer) -> None:
        reason = peer.connection.listen(functools.partial(self._handle, peer))
        peer.is_closed = True
        if not peer.is_finished:
            self._end(f"{peer.name} is lost: {reason}", PREEMPTED)

    def _handle(self, peer: _Peer, message: dict) -> None:
        if "count" in message:
            peer.count = message["count"]
            self._check_progress(peer, message["overdue"])
            if peer is self._own:
                self._send_all(beat=True)
        if "meet" in message:
            self._arrived()
        if "finished" in message or "failed" in message:
            peer.is_finished = True
        if "failed" in message:
            start_thread(self._end_after_grace, peer.name, message["failed"])
        if "lost" in message:
            start_thread(self._end, message["lost"], PREEMPTED)

    def _check_progress(self, peer: _Peer, overdue: str | None) -> None:
        """Ends all if a process is overdue and no other is behind it: those that wait
        for a slow one have shorter limits in their phase than it may have in its own."""
        active = [p for p in (self._own, *self._others) if not p.is_finished]
        least = min((p.count for p in active), default=0)
        if overdue and peer.count == least:
            stuck = [p.name for p in active if p.count == least]
            verb = "is" if len(stuck) == 1 else "are"
            reason = f"{', '.join(stuck)} {verb} stuck: {overdue}"
            start_thread(self._end, reason, PREEMPTED)

    def _arrived(self) -> None:
        with self._changed:
            self._arrivals += 1
            is_complete = self._arrivals % self._num_processes == 0
        if is_complete:
            self._send_all(met=True)
            self.all_met()

    def _send_all(self, **message) -> None:
        for peer in self._others:
            peer.connection.send(**message)

    def _end_after_grace(self, name: str, code: int) -> None:
        time.sleep(peers.ERROR_GRACE_SECONDS)
        self._end(f"{name} has ended with exit code {code}; see its own message", code)

    def _end(self, reason: str, code: int) -> None:
        """Ends all processes, this one last: JAX aborts those that lose process 0."""
        with self._changed:
            if self._is_ending:  # the first reason counts
                return
            self._is_ending = True
        self._send_all(end=reason, code=code)
        deadline = time.monotonic() + _EXIT_SECONDS
        while time.monotonic() < deadline:
            if all(peer.is_closed for peer in self._others):
                break
            time.sleep(0.02)
        start_thread(release_locks).join(_EXIT_SECONDS)
        self.exit(reason, code)
