"""The steps of ``pancrafter.steps`` as Prefect tasks: names, retries and nothing else.

Only transient errors are tried again. Nothing is cached by Prefect: every step looks for its own finished work.
"""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from pancrafter import steps
from pancrafter.errors import PancrafterError

RETRY_DELAYS_S = [5, 30]


async def is_transient(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed attempt may go better next time."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, PancrafterError) and error.kind == "transient"


stage = task(
    steps.stage, name="stage", retries=2, retry_delay_seconds=RETRY_DELAYS_S, retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,
)
sharpen = task(
    steps.sharpen, name="sharpen", retries=2, retry_delay_seconds=RETRY_DELAYS_S, retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,
)
assess = task(
    steps.assess, name="assess", retries=2, retry_delay_seconds=RETRY_DELAYS_S, retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,
)
publish = task(
    steps.publish, name="publish", retries=2, retry_delay_seconds=RETRY_DELAYS_S, retry_condition_fn=is_transient,
    cache_policy=NO_CACHE,
)
