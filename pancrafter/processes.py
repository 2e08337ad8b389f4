"""Who a process is, so that another one on the same machine can tell whether it is still there.

A host name does not say which machine is meant: containers on the host's network share it, as do machines that happen
to be named alike, and each has a process table of its own. So the name of a place also says which process table it is
(that of a machine, or of one container) and since which start of the machine.
"""

from __future__ import annotations

import hashlib
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

_PROCESSES_OF_A_MACHINE = "pid:[4026531836]"
"""The pid namespace that every Linux starts with: PROC_PID_INIT_INO of include/linux/proc_ns.h. Containers have others,
whose numbers are given anew after each start."""

SILENCE = timedelta(days=2)
"""How long a process of which nothing is known may show no sign of life; none of its steps takes nearly as long."""


def lease_owner() -> str:
    """This process: place, process id and start time."""
    return f"{_place()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(owner: str, last_sign: datetime | None = None) -> bool:
    """Whether a process that could be seen from here has ended, or its machine was started again since.

    Nothing is known of those of other machines and containers, and of names that older versions gave: they are gone if
    their last sign of life is given and long ago.
    """
    parts = owner.rsplit("/", 2)
    if len(parts) != 3 or not parts[1].isdigit():
        return False
    place, pid, started = parts
    if place == _place():
        return _started(int(pid)) != started
    if _machine() and place.rpartition("+")[0] == _place().rpartition("+")[0]:
        return True
    return last_sign is not None and datetime.now(UTC) - last_sign > SILENCE


def _place() -> str:
    """Where process ids mean the same as here: host name, process table, and start of the machine.

    Where the system does not tell more (not Linux), the host name alone has to do.
    """
    table = hashlib.sha256((_machine() or _pid_namespace()).encode()).hexdigest()[:8]  # the machine's id is private
    return f"{socket.gethostname()}+{table}+{_read('/proc/sys/kernel/random/boot_id')[:8]}"


def _machine() -> str:
    """The id of this machine, the same after it was started again; '' in a container or where there is none."""
    return _read("/etc/machine-id") if _pid_namespace() == _PROCESSES_OF_A_MACHINE else ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Start time of a process as the kernel counts it, '' if it is gone (or cannot be known here)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
