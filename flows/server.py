"""What the flows ask of a Prefect server as its client."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL

from pancrafter.errors import PancrafterError

T = TypeVar("T")


class NoServerError(PancrafterError):
    """There is no Prefect server to speak to."""

    kind = "system"


@contextlib.contextmanager
def server_client(*, wait_s: float = 0) -> Iterator[SyncPrefectClient]:
    """A client of the server of ``PREFECT_API_URL``, which has some seconds left to start.

    Raises:
        NoServerError: It does not answer, or is not named: Prefect would start one for this process alone.
    """
    address = PREFECT_API_URL.value()
    if not address:
        raise NoServerError("PREFECT_API_URL is not set; expected the server's address, as http://127.0.0.1:4200/api")
    deadline = time.monotonic() + wait_s
    with get_client(sync_client=True) as client:
        while (error := client.api_healthcheck()) is not None:
            if time.monotonic() > deadline:
                reason = f"no Prefect server answers at {address} ({error}); start it, or correct PREFECT_API_URL"
                raise NoServerError(reason) from error
            time.sleep(0.5)
        yield client


def every(read: Callable[..., list[T]], **wanted: Any) -> Iterator[T]:  # Any: filters
    """All that a method of the client lists, of which the server gives so many at a time (usually 200)."""
    offset = 0
    while page := read(limit=None, offset=offset, **wanted):
        yield from page
        offset += len(page)
