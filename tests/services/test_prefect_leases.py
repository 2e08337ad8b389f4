"""Slots of Prefect's limits belong to runs, also over the death of Prefect's server."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.services


def test_slot_of_a_living_run_is_kept_over_the_death_of_the_server(urls: dict[str, str]) -> None:
    """Its lease can be renewed afterwards; with leases in memory nobody knows it, and the slot stays taken."""
    api, file = (
        f"{urls['PREFECT_API_URL']}/v2/concurrency_limits",
        Path(urls["PANCRAFTER_STATE_DIR"]).parent / "prefect.pid",
    )
    made = httpx.post(f"{api}/", json={"name": "outlives", "limit": 1, "active": True}, timeout=60)
    assert made.status_code == 201, made.text
    wanted = {"names": ["outlives"], "slots": 1, "mode": "concurrency", "lease_duration": 300}
    taken = httpx.post(f"{api}/increment-with-lease", json=wanted, timeout=60).json()
    pid = int(file.read_text())
    os.kill(pid, signal.SIGKILL)
    renewal, deadline = f"{api}/leases/{taken['lease_id']}/renew", time.monotonic() + 300
    while int(file.read_text() or pid) == pid or not _answers(urls["PREFECT_API_URL"]):
        assert time.monotonic() < deadline, "Prefect's server was not started again"
        time.sleep(0.2)
    renewed = httpx.post(renewal, json={"lease_duration": 300}, timeout=60)
    assert renewed.status_code == 204, renewed.text
    assert httpx.get(f"{api}/outlives", timeout=60).json()["active_slots"] == 1
    given = httpx.post(f"{api}/decrement-with-lease", json={"lease_id": taken["lease_id"]}, timeout=60)
    assert given.status_code == 204, given.text
    assert httpx.get(f"{api}/outlives", timeout=60).json()["active_slots"] == 0


def _answers(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=10).status_code == 200
    except httpx.TransportError:
        return False
