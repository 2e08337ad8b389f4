"""``python -m flows.check``: will runs of the deployments be carried out? Prefect lets them wait without a word if not.

A work pool that was deleted, a worker that was started for a pool with another name (Prefect makes that pool), no
worker at all, runs that wait for a pool that is gone. Exit status 1 and one line for each; nothing is changed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType, WorkerStatus

from flows.server import NoServerError, every, server_client

_WAITING = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))


def problems(client: SyncPrefectClient) -> Iterator[str]:
    """Everything that keeps runs from being carried out, with the remedy."""
    known = every(client.read_deployments)
    deployments = [one for one in known if one.work_pool_name or one.pull_steps]  # programs serve others themselves
    if not deployments:
        yield "there is no deployment; run `python -m flows.deploy`"
    wanted: Counter[str] = Counter()
    for deployment in deployments:
        if deployment.work_pool_name is None:
            yield f"deployment {deployment.name} has no work pool, it was deleted; run `python -m flows.deploy`"
        else:
            wanted[deployment.work_pool_name] += 1
    living = {pool.name: _workers(client, pool.name) for pool in every(client.read_work_pools)}
    for pool in sorted(wanted):
        if not living.get(pool):
            yield f"work pool {pool} has no living worker; run `prefect worker start --pool {pool}`"
    for pool in sorted(living.keys() - wanted.keys()):
        if living[pool]:
            yield f"{', '.join(living[pool])} waits at work pool {pool}, which no deployment uses; look at its --pool"
    ours = {deployment.id for deployment in deployments}
    for run in every(client.read_flow_runs, flow_run_filter=_WAITING):
        overdue = run.next_scheduled_start_time is not None and run.next_scheduled_start_time < datetime.now(UTC)
        if overdue and run.work_queue_id is None and run.deployment_id in ours:
            yield (
                f"flow run {run.name} ({run.id}) waits for a work pool that is gone; cancel it with "
                f"`prefect flow-run cancel {run.id}` and start it again"
            )


def _workers(client: SyncPrefectClient, pool: str) -> list[str]:
    return [worker.name for worker in client.read_workers_for_work_pool(pool) if worker.status == WorkerStatus.ONLINE]


def main() -> int:
    """Print what is wrong, and say whether anything is."""
    try:
        with server_client() as client:
            found = list(problems(client))
    except NoServerError as error:
        found = [str(error)]
    good = "every deployment has a work pool with a living worker, and no run waits in vain"
    sys.stdout.write("".join(f"{line}\n" for line in found or [good]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
