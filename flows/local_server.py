"""Prefect's server for runs without one: on a free port of this machine, and gone when the run is gone.

Prefect's own ephemeral server outlives a run that is killed with ``kill -9``; this one is told by the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pancrafter.errors import PancrafterError
from pancrafter.ports import free_port

START_S = 180
_PR_SET_PDEATHSIG = 1

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
}
"""What keeps the local server quiet and private."""


class LocalServerError(PancrafterError):
    """Prefect's server does not start here."""

    kind = "system"


@contextlib.contextmanager
def prefect_server(home: Path) -> Iterator[bool]:
    """A Prefect server for the block, with its database in ``home``; the one of ``PREFECT_API_URL`` where that is set.

    Call it before Prefect is imported, which reads the environment once. Gives whether the server is this block's own.

    Raises:
        LocalServerError: It does not answer in time.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield False
        return
    home.mkdir(parents=True, exist_ok=True)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(home))
    port, log = free_port(), home / "server.log"
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    words = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=_end_with_parent(os.getpid()),  # noqa: PLW1509 - one system call, and no thread runs here yet
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/health", server, log)
        yield True
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=10)
        server.kill()
        server.wait()


def _end_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        os.setsid()  # Ctrl-C is for the run, which ends its server itself
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # died before it was asked for
                os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    said = last[0] if last else "nothing"
    raise LocalServerError(f"Prefect's server did not start within {START_S} s; it said: {said}; its log is {log}")
