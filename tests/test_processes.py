"""Which processes are known to be gone: those of this process table, and of this machine before its last start."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pancrafter.processes import is_gone, lease_owner

_ASK = "import sys; from pancrafter.processes import *; print(lease_owner(), *map(is_gone, sys.argv[1:]))"
_CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")


def _asked(*owners: str, within: tuple[str, ...] = ()) -> list[str]:
    """Another process' name of itself, and whether it takes these for gone; it has ended when this returns."""
    command = [*within, sys.executable, "-c", _ASK, *owners]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def _before_the_last_start(owner: str) -> str:
    place, rest = owner.split("/", 1)
    return f"{place.rpartition('+')[0]}+0badb007/{rest}"


def test_a_process_beside_this_one_is_gone_when_it_has_ended() -> None:
    other, gone = _asked(lease_owner())
    assert gone == "False"
    assert is_gone(other)
    assert not is_gone(lease_owner())


def test_what_ran_before_the_machine_was_started_again_is_gone() -> None:
    """In a container nothing tells the same container after a start from one of another machine."""
    machine = Path("/proc/self/ns/pid").readlink() == Path("pid:[4026531836]") and Path("/etc/machine-id").is_file()
    assert is_gone(_before_the_last_start(lease_owner())) == machine


def test_a_container_with_the_same_host_name_knows_nothing_of_processes_here_nor_these_of_it() -> None:
    try:
        inside, gone, gone_before = _asked(lease_owner(), _before_the_last_start(lease_owner()), within=_CONTAINER)
    except (OSError, subprocess.CalledProcessError) as err:
        pytest.skip(f"no process namespace can be made here: {err}")
    assert inside.split("+")[0] == lease_owner().split("+")[0]
    assert (gone, gone_before) == ("False", "False")
    assert not is_gone(inside)
    assert not is_gone(_before_the_last_start(inside))
    assert _asked(_before_the_last_start(inside), within=_CONTAINER)[1] == "False", "another container, or start"


@pytest.mark.parametrize("owner", ["", "host", "host/x/1", "elsewhere+12345678+12345678/1/1", "host/1/1"])
def test_an_owner_of_whom_nothing_is_known_is_not_gone(owner: str) -> None:
    assert not is_gone(owner)


@pytest.mark.parametrize("owner", ["elsewhere+12345678+12345678/1/1", "host/1/1"])
def test_an_owner_of_whom_nothing_is_known_is_gone_after_days_without_a_sign_of_life(owner: str) -> None:
    now = datetime.now(UTC)
    assert not is_gone(owner, now - timedelta(days=1))
    assert is_gone(owner, now - timedelta(days=3))
    assert not is_gone(lease_owner(), now - timedelta(days=3)), "it is there, as can be seen"
