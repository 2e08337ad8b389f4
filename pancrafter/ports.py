"""Ports for servers that are started here for a while: Prefect's beside a run, those of a stack, those of tests."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"

_PORTS = range(15_000, 32_000)
"""Below those that systems give to outgoing connections (Linux: from 32,768). One of them may be taken by anybody
between the moment it was found free and the start of its server, or while the server is started again."""

_given: set[int] = set()


def free_port() -> int:
    """A port of this machine that nobody listens on; never the same twice in a process.

    Raises:
        OSError: None is left.
    """
    candidates = [port for port in _PORTS if port not in _given]
    for port in random.SystemRandom().sample(candidates, len(candidates)):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise OSError(
        f"no port between {_PORTS.start} and {_PORTS.stop} of {HOST} is free; end servers that are not needed"
    )
