"""Runs as deployments: a Prefect server that lives as long as the campaign, a process worker, the nightly flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from faults.processes import MARK, PROJECT, Started, family, spawn
from pancrafter.ports import free_port

POOL = "pancrafter"
GONE_AFTER_S = 5
"""A run counts as dead when none of its processes was there for so long, whatever Prefect says of it."""

_OVER = {"COMPLETED": 0, "FAILED": 1, "CRASHED": 70, "CANCELLED": 71}
_PICKED_UP_S = 180


class PrefectServer:
    """Prefect's server with its own database, started again where it was killed."""

    def __init__(self, folder: Path, *, ui: bool = False) -> None:
        self._folder = folder
        self._ui = [] if ui else ["--no-ui"]
        self._port = free_port()
        self._log = folder / "server.log"
        self._process: Started | None = None
        self.mark = str(folder)
        folder.mkdir(parents=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """For everything that talks to it."""
        return {
            "PREFECT_HOME": str(self._folder),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PANCRAFTER_HOME": str(PROJECT),
        }

    @property
    def process(self) -> Started:
        """The server; started first where it is not there."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        first = self._process is None
        command = ["server", "start", "--host", "127.0.0.1", "--port", str(self._port), *self._ui]
        self._process = spawn(_prefect(*command), self._log, self.environment | {MARK: self.mark})
        deadline = time.monotonic() + _PICKED_UP_S
        while self.ask("/health") is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"Prefect's server does not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.1)
        if first:
            self.deploy()
        return self._process

    @property
    def living(self) -> Started | None:
        return self._process if self._process is not None and self._process.poll() is None else None

    def deploy(self) -> None:
        """As docs/operations.md has it."""
        done = self.command("flows.deploy")
        assert done.returncode == 0, done.stdout + done.stderr

    def command(self, module: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m MODULE WORDS`` as an operator of this server does."""
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=PROJECT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def ask(self, path: str, body: Any = None, *, method: str | None = None) -> Any:
        """The JSON answer, ``{}`` where it has no content; None where nobody answers."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        for attempt in range(10):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or b"{}")
            except urllib.error.HTTPError as err:
                if err.code != 503 or attempt == 9:  # its database was busy
                    raise RuntimeError(f"{path}: {err.code} {err.read()[:2000].decode()}") from err
                time.sleep(1)
            except OSError:
                break
        return None

    def worker(self, log: Path, environment: dict[str, str], *options: str, pool: str = POOL) -> Started:
        """A process worker, as an operator's service manager starts it."""
        assert self.process
        command = _prefect("worker", "start", "--pool", pool, "--type", "process", *options)
        return spawn(command, log, self.environment | environment)

    def run(self, deployment: str, parameters: dict[str, Any], mark: str, log: Path) -> DeploymentRun:
        """Start a deployment, as ``prefect deployment run`` does."""
        assert self.process
        found = self.ask(f"/deployments/name/{deployment}")
        run = self.ask(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return DeploymentRun(self, run["id"], mark, log)

    def end(self) -> None:
        if (process := self.living) is not None:
            os.killpg(process.pid, 9)
            process.wait(30)


@dataclass
class DeploymentRun:
    """A flow run that a worker carries out; ``wait`` and ``poll`` as those of a process."""

    server: PrefectServer
    run_id: str
    mark: str
    log: Path
    status: int | None = None
    state: str = ""
    _seen: float = 0.0

    def wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"flow run still {self.state} after {timeout_s:g} s:\n{self.log.read_text()[-3000:]}"
                )
            time.sleep(0.2)
        assert self.status is not None
        return self.status

    def poll(self) -> int | None:
        if self.status is not None:
            return self.status
        run = self.server.ask(f"/flow_runs/{self.run_id}")
        if run is not None:
            state = run["state"]
            self.state = f"{state['name']}: {state['message'] or ''}"
            self.status = _OVER.get(state["type"])
        if self.status is None and self._is_dead(waiting=run is not None and run["state"]["type"] == "SCHEDULED"):
            self.status = 72
        return self.status

    def _is_dead(self, *, waiting: bool) -> bool:
        """Whether nothing will become of it: no process carries it out, and no worker will start one."""
        members = family(self.mark)
        engine, worker = any(map(is_engine, members)), any(map(is_worker, members))
        now = time.monotonic()
        if engine or not self._seen or (waiting and worker):
            self._seen = now
        patience = GONE_AFTER_S if not worker else _PICKED_UP_S
        return now - self._seen > patience


def is_worker(process: psutil.Process) -> bool:
    """Whether it is a Prefect worker, and not what a worker started."""
    command = _command(process)
    return "worker" in command and "start" in command


def is_engine(process: psutil.Process) -> bool:
    """Whether it carries out a flow run."""
    return any("engine" in word for word in _command(process)[:4])


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has just ended
        return []


def _prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]
