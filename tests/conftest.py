"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from xdist.scheduler import LoadFileScheduling

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class ByFile(LoadFileScheduling):
    """Files go to processes as a whole, for their fixtures; those of tests/services as one, for their servers."""

    def _split_scope(self, nodeid: str) -> str:
        services = "tests/services/"
        return services if nodeid.startswith(services) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False  # folders, whose tests take longest, are collected first
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pairs and STAC items beside the project; a skip that CI counts as a failure."""
    if not SHARED_DATA.is_dir():
        message = f"real data not found at {SHARED_DATA}: tests on real imagery did not run"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return SHARED_DATA


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an S3 server with an empty bucket ``bucket``; the environment tells boto3, fsspec and GDAL of it."""
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_HTTPS": "NO",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_S3_ENDPOINT": f"{host}:{port}",
        "AWS_ENDPOINT_URL": address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    forget = fsspec.get_filesystem_class("s3").clear_instance_cache  # connections that know of other environments
    forget()
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield address
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()  # what servers of one process hold is shared
    server.stop()
    forget()
