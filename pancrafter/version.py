"""Which code this is: its version and, in a checkout, its commit."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SOURCE_VERSION = "0+source"
"""Version of code that runs from a source tree and was never installed."""


@cache
def code_version() -> str:
    """The version that is installed, or ``SOURCE_VERSION``."""
    try:
        return version("pancrafter")
    except PackageNotFoundError:
        return SOURCE_VERSION


def code_commit() -> str | None:
    """The git commit this code was checked out from, with ``+changes`` where files differ; None if it is not in git.

    So it is for a package installed into an environment inside the repository of something else.
    """
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        asked = [git, "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  # git, fixed words
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None or ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return commit + ("+changes" if ask("status", "--porcelain", ".") else "")
