"""``python -m flows.deploy``: what the flows need on a Prefect server: pool, queues, deployments, limit on the GPU.

Can be repeated, as after an upgrade. Pool, queues and limit that are there stay as they are, deployments become what
``prefect.yaml`` says, and what an operator has paused stays paused: ``prefect deploy`` by itself sets all going again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import DeploymentSchedule

from flows.server import NoServerError, every, server_client
from flows.tasks import GPU_LIMIT

POOL = "pancrafter"
QUEUES: tuple[tuple[str, int, int | None], ...] = (("nightly", 1, None), ("upkeep", 2, None), ("backfill", 3, 1))
"""Name, priority (1 goes first), and how many of its runs work at once."""

SERVER_START_S = 60
"""How long the server may take to answer that was started in the line before."""

_MAY_BE_MISSING = {"PANCRAFTER_CATALOG_URL": "", "PANCRAFTER_DASK_SCHEDULER": ""}
"""Places of ``prefect.yaml`` without which a deployment works; Prefect would take them for misspelt."""


def deploy(client: SyncPrefectClient, pool_type: str) -> None:
    """Make what is missing, and bring the deployments up to date.

    Raises:
        subprocess.CalledProcessError: A command of Prefect failed; it has said why.
    """
    if POOL not in {pool.name for pool in every(client.read_work_pools)}:
        _prefect("work-pool", "create", POOL, "--type", pool_type)
    known = {queue.name for queue in client.read_work_queues(work_pool_name=POOL)}
    for name, priority, limit in QUEUES:
        if name not in known:
            client.create_work_queue(name, priority=priority, concurrency_limit=limit, work_pool_name=POOL)
    if GPU_LIMIT not in {limit.name for limit in every(client.read_global_concurrency_limits)}:
        _prefect("gcl", "create", GPU_LIMIT, "--limit", "1")
    before = {one.id: one for one in every(client.read_deployments)}  # others may have the same names
    _prefect("--no-prompt", "deploy", "--all")
    for deployment in every(client.read_deployments):
        was = before.get(deployment.id, deployment)
        if was.paused and not deployment.paused:
            client.pause_deployment(deployment.id)
            sys.stdout.write(f"{deployment.name} stays paused\n")
        if _all_inactive(was.schedules) and not _all_inactive(deployment.schedules):
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)
            sys.stdout.write(f"the schedule of {deployment.name} stays paused\n")


def _all_inactive(schedules: list[DeploymentSchedule]) -> bool:
    return bool(schedules) and not any(schedule.active for schedule in schedules)


def _prefect(*words: str) -> None:
    command = [sys.executable, "-m", "prefect", *words]
    environment = _MAY_BE_MISSING | os.environ
    folder = Path(__file__).resolve().parents[1]
    subprocess.run(command, cwd=folder, env=environment, check=True)  # noqa: S603 (words of ours)


def main(arguments: list[str]) -> int:
    """Deploy to the server of ``PREFECT_API_URL``."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy", description="Set up a Prefect server for the flows."
    )
    parser.add_argument(
        "--pool-type", default="process", help="of the work pool, where it is made: process, kubernetes"
    )
    pool_type = parser.parse_args(arguments).pool_type
    try:
        with server_client(wait_s=SERVER_START_S) as client:
            deploy(client, pool_type)
    except NoServerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
