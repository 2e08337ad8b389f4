"""Temporary folders whose writers may outlive the failure that ends their use."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed with everything in it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        remove_folder(folder)


def remove_folder(folder: Path, patience_s: float = 10.0) -> None:
    """Remove a folder into which tasks of a failed run may still be writing: until it stays away."""
    deadline = time.monotonic() + patience_s
    gone = 0
    while gone < 3 and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        gone = 0 if folder.exists() else gone + 1
        time.sleep(0.03)
