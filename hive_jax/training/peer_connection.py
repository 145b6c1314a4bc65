"""TCP connections between the processes of a job."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable

from hive_jax.errors import UnavailableError


class Connection:
    """Messages over a socket, as JSON lines.

    Args:
      sock: a connected TCP socket.
      silence: seconds without a message after which the other end counts as lost.
    """

    def __init__(self, sock: socket.socket, silence: float):
        sock.settimeout(silence)  # of reads and of writes
        self._silence = silence
        self._socket, self._file = sock, sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, **message) -> None:
        """Sends a JSON object; does nothing if the connection is broken."""
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
            return f"it has not answered for {self._silence} s"
        except OSError:  # a reset, where unread messages were under way
            pass
        return "its connection has closed, as that of a killed process"

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


def connect(coordinator: dict) -> socket.socket:
    """Returns a socket connected to the first address of process 0 that answers.

    Args:
      coordinator: "host", "addresses" and "port" of process 0.

    Raises:
      UnavailableError: none answers.
    """
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
