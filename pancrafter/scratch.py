"""Temporary files and folders: nothing half written is ever seen, nothing of a failure stays."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pancrafter.errors import PancrafterError, SinkError


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


def replace_file(target: Path, write: Callable[[Path], object], *, time_of: Path | None = None) -> None:
    """Write a file beside its target, then switch: a reader sees the old one or the new one.

    Args:
        target: The file to be.
        write: Fills the path it is given.
        time_of: Give the new file the time of this one, as its best hint at when the pixels are from.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
            temporary = Path(scratch) / target.name
            write(temporary)
            if time_of is not None:
                os.utime(temporary, ns=(time_of.stat().st_atime_ns, time_of.stat().st_mtime_ns))
            temporary.replace(target)
    except OSError as err:  # RasterioIOError is one too
        raise SinkError(f"{target}: cannot be written ({err}); check rights and free space") from err


@contextmanager
def undone_on_error(folder: Path) -> Iterator[None]:
    """Leave no copies behind for an item that was not added."""
    existed = folder.exists()
    try:
        yield
    except PancrafterError:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise
