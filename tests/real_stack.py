"""What the tests on real servers share."""

from __future__ import annotations

from pathlib import Path

import psutil

from infra import stack


def is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:  # ended, and not yet buried
            return False
        return process.environ().get(stack.MARK) == str(folder) or str(folder) in " ".join(process.cmdline())
    except psutil.Error:
        return False
