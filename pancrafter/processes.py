"""Who a process is, so that another one on the same machine can tell whether it is still there."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def lease_owner() -> str:
    """This process: host, process id and start time."""
    return f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Whether a process of this machine has ended; False for those of other machines, of which nothing is known."""
    parts = owner.rsplit("/", 2)
    if len(parts) != 3 or not parts[1].isdigit():
        return False
    host, pid, started = parts
    return host == socket.gethostname() and _started(int(pid)) != started


def _started(pid: int) -> str:
    """Start time of a process as the kernel counts it, '' if it is gone (or cannot be known here)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
