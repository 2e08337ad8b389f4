"""The steps of ``pancrafter.steps`` as Prefect tasks: names, retries, the limit on the GPU, and nothing else.

Only transient errors are tried again. Nothing is cached by Prefect: every step looks for its own finished work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.tasks import Task

from pancrafter import steps
from pancrafter.compute import Compute
from pancrafter.errors import LeaseLostError, PancrafterError
from pancrafter.ledger import Ledger
from pancrafter.settings import Settings
from pancrafter.types import StagedScene

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS_S: list[float] = [5, 30]

SLOT_LEASE_S = 60
"""How long the slot of a killed run stays taken on a server that goes on; Prefect's least. Living runs renew it."""

GPU_LIMIT = "pancrafter-gpu"
"""Global concurrency limit on the step that needs the device; without such a limit in Prefect nothing is limited."""


def create_gpu_limit() -> None:
    """On a server that was just started, one sharpening step at a time; what a killed run held is free again."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, limit=1)
        client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(active_slots=0))


async def is_transient(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed attempt may go better next time; the slot on the GPU is not given while the server restarts.

    A lost lease does not come back: the scene is another worker's.
    """
    error = await state.aresult(raise_on_failure=False)
    if isinstance(error, ConcurrencySlotAcquisitionError):
        return True
    return isinstance(error, PancrafterError) and error.kind == "transient" and not isinstance(error, LeaseLostError)


def as_task(step: Callable[P, R]) -> Task[P, R]:
    """A step that is tried again after an error that may pass."""
    return task(retries=2, retry_delay_seconds=RETRY_DELAYS_S, retry_condition_fn=is_transient, cache_policy=NO_CACHE)(
        step
    )


def _sharpen_on_device(
    work: steps.Claimed,
    staged: StagedScene,
    settings: Settings,
    compute: Compute,
    ledger: Ledger,
    report: steps.Report,
) -> steps.Sharpened:
    with concurrency(GPU_LIMIT, occupy=1, lease_duration=SLOT_LEASE_S):
        return steps.sharpen(work, staged, settings, compute, ledger, report)


_sharpen_on_device.__name__ = "sharpen"

stage = as_task(steps.stage)
sharpen = as_task(_sharpen_on_device)
assess = as_task(steps.assess)
publish = as_task(steps.publish)
