"""Named places where a fault campaign may kill this process with ``SIGKILL``; nothing happens unless it asks for it.

``tests/faults`` sets ``PANCRAFTER_KILL_AT=NAME:NTH:TOKEN``: the process that passes ``NAME`` for the ``NTH`` time and
manages to remove the file ``TOKEN`` dies there, as by ``kill -9``; the token makes it die once, not at every restart.
It is read from the environment and is no setting: settings travel into items and ledgers, and this must not.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

VARIABLE = "PANCRAFTER_KILL_AT"

POINTS = (
    "found",
    "claimed",
    "stage-written",
    "staged",
    "block-written",
    "block-done",
    "sharpen-computed",
    "sharpened",
    "fallback-decided",
    "fallback-begun",
    "assess-measured",
    "assessed",
    "files-written",
    "asset-put",
    "before-switch",
    "item-written",
    "linked",
    "read-back",
    "published",
    "announced",
    "confirmed",
)
"""Every place, in the order in which a scene passes them."""

_passed: Counter[str] = Counter()


def at(name: str) -> None:
    """Die here if the environment says so."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, nth, token = wanted.split(":", 2)
    _passed[name] += 1
    if point == name and _passed[name] >= int(nth) and _took(token):
        os.kill(os.getpid(), signal.SIGKILL)


def _took(token: str) -> bool:
    try:
        Path(token).unlink()
    except FileNotFoundError:
        return False
    return True
