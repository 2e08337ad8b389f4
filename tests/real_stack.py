"""What the tests on real servers share."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from infra import stack


def need_servers() -> None:
    """Install what the servers need; where that cannot be, a skip, which counts as a failure in CI."""
    try:
        stack.install()
        reason = stack.missing()
    except stack.StackError as error:
        reason = str(error)
    if reason:
        if os.environ.get("CI") == "true" or os.environ.get("NEED_SERVICES"):
            pytest.fail(reason)
        pytest.skip(reason)


def is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:  # ended, and not yet buried
            return False
        return process.environ().get(stack.MARK) == str(folder) or str(folder) in " ".join(process.cmdline())
    except psutil.Error:
        return False
