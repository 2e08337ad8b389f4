"""Ports that are found free stay free until their server binds them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pancrafter import ports
from pancrafter.ports import HOST, free_port


def test_no_port_is_given_twice_nor_to_outgoing_connections() -> None:
    found = [free_port() for _ in range(200)]
    assert len(set(found)) == 200
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if limits.exists():
        first, last = map(int, limits.read_text().split())
        assert not [port for port in found if first <= port <= last]


def test_ports_in_use_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = free_port(), free_port()
    monkeypatch.setattr(ports, "_PORTS", (one, other))
    monkeypatch.setattr(ports, "_given", set())
    with socket.socket() as server:
        server.bind((HOST, one))
        server.listen()
        assert free_port() == other


def test_no_port_left_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
    with pytest.raises(OSError, match="end servers"):
        free_port()
