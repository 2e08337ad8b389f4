"""Starting the project's commands as processes that can be found and killed, whatever they started themselves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "PANCRAFTER_FAULT_RUN"
"""Environment variable by which everything that a run started is recognised."""

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Started:
    """One command; ``wait`` returns its exit status, negative for a signal."""

    pid: int
    log: Path
    status: int | None = None

    def wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still running after {timeout_s:g} s:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status


def fork(work: Callable[[], int | None], log: Path, environment: Mapping[str, str]) -> Started:
    """Run ``work`` in a copy of this process: a command without the seconds that loading torch takes.

    This process must have started no thread, and neither torch nor Dask may have computed anything in it.
    """
    pid = os.fork()
    if pid:
        return Started(pid, log)
    status = 70
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.environ.update(environment)
        status = work() or 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:  # noqa: BLE001 - the end of a process: everything is said and nothing is hidden
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def asked(question: Callable[[], Any], folder: Path, environment: Mapping[str, str] | None = None) -> Any:
    """The JSON answer of ``question``, found in a copy of this process, so that its libraries start no thread here."""
    answer = folder / "answer.json"
    started = fork(lambda: answer.write_text(json.dumps(question())) and 0, folder / "questions.log", environment or {})
    if started.wait(300) != 0:
        raise RuntimeError(started.log.read_text()[-1500:])
    return json.loads(answer.read_text())


def spawn(command: list[str], log: Path, environment: dict[str, str]) -> Started:
    """Start a command as a user does."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process.returncode = 0  # waited for here, not by subprocess
    return Started(process.pid, log)


def family(run: str) -> list[psutil.Process]:
    """All living processes of a run, also those whose parents are gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(process: psutil.Process) -> bool:
    """``kill -9``; False if it had ended already."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def left_behind(run: str, timeout_s: float) -> list[str]:
    """Processes of a run that are still there after a while, which it should have taken with it."""
    deadline = time.monotonic() + timeout_s
    while (found := family(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    names = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            names.append(" ".join(process.cmdline())[:150])
            kill(process)
    return names
