"""What made a result is said as it is: the version, and the commit with what was changed since."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pancrafter import version
from pancrafter.version import SOURCE_VERSION, code_commit, code_version

GIT = shutil.which("git") or "git"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    asked = [GIT, "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
    return subprocess.run(asked, capture_output=True, text=True, check=False)


def test_commit_is_that_of_the_checkout() -> None:
    head = _git(Path(__file__).parent, "rev-parse", "HEAD")
    if head.returncode:
        assert code_commit() is None
    else:
        assert (code_commit() or "").removesuffix("+changes") == head.stdout.strip()


def _said_by(folder: Path) -> str:
    """What the package that lies in a folder says of its commit."""
    code = "from pancrafter.version import code_commit; print(code_commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _package_in(folder: Path) -> None:
    for name in ("__init__.py", "model/layers.py", "training/loop.py"):
        (folder / "pancrafter" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pancrafter" / name).touch()
    shutil.copy(str(version.__file__), folder / "pancrafter")


def _commit_all(folder: Path, *, but: str) -> str:
    (folder / ".gitignore").write_text(f"{but}\n")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "all")):
        assert _git(folder, *words).returncode == 0
    return _git(folder, "rev-parse", "HEAD").stdout.strip()


@needs_git
@pytest.mark.parametrize("changed", ["model/layers.py", "training/loop.py", "new.py"])
def test_changes_anywhere_in_the_package_are_said(tmp_path: Path, changed: str) -> None:
    """Those elsewhere in the checkout make no result."""
    _package_in(tmp_path)
    commit = _commit_all(tmp_path, but="__pycache__")
    (tmp_path / "notes.txt").write_text("beside the package")
    assert _said_by(tmp_path) == commit
    (tmp_path / "pancrafter" / changed).write_text("# edited\n")
    assert _said_by(tmp_path) == commit + "+changes"


@needs_git
def test_the_commit_of_what_surrounds_the_package_is_not_its_own(tmp_path: Path) -> None:
    """As where an environment lies in the folder of a project."""
    _commit_all(tmp_path, but=".venv")
    _package_in(tmp_path / ".venv")
    assert _said_by(tmp_path / ".venv") == "None"


def test_code_that_was_never_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version() == metadata.version("pancrafter")
    code_version.cache_clear()

    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", absent)
    assert code_version() == SOURCE_VERSION
    code_version.cache_clear()
