"""Which process carries out a flow run, so that runs of dead processes do not stay "Running" for ever."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import TaskRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flows.server import every
from pancrafter.processes import is_gone, lease_owner

_TAG = "process:"


def sign_run() -> None:
    """Note on the present flow run who carries it out."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with get_client(sync_client=True) as client:
        others = {tag for tag in context.flow_run.tags if not tag.startswith(_TAG)}
        client.update_flow_run(context.flow_run.id, tags=[*others, f"{_TAG}{lease_owner()}"])


def crash_gone_runs() -> list[str]:
    """Set runs as crashed whose process is gone, or is not of this machine and silent for long; returns their names."""
    running = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]))
    )
    crashed = []
    with get_client(sync_client=True) as client:
        for run in list(every(client.read_flow_runs, flow_run_filter=running)):
            owners = [tag.removeprefix(_TAG) for tag in run.tags if tag.startswith(_TAG)]
            if owners and all(is_gone(owner, _last_sign(client, run)) for owner in owners):
                with contextlib.suppress(ObjectNotFound):
                    message = f"process {owners[0]} is gone; the ledger kept what was done"
                    client.set_flow_run_state(run.id, Crashed(message=message), force=True)
                    crashed.append(run.name)
    return crashed


def _last_sign(client: SyncPrefectClient, run: FlowRun) -> datetime:
    """When a run changed its state last, or began its latest step."""
    signs = [] if run.state is None else [run.state.timestamp]
    only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    latest = client.read_task_runs(flow_run_filter=only, sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return max(signs + [step.start_time for step in latest if step.start_time], default=datetime.now(UTC))
