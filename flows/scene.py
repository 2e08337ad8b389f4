"""Flow: one scene from claim to confirmation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State as RunState
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.exceptions import PrefectException
from prefect.states import Completed, Failed
from prefect.tasks import Task

from flows import tasks
from flows.parameters import SettingsParameter, with_environment
from flows.report import leave_artifacts
from flows.runs import sign_run
from pancrafter import discovery, steps
from pancrafter.census import command
from pancrafter.compute import Compute, open_compute
from pancrafter.errors import PancrafterError
from pancrafter.ledger import open_ledger
from pancrafter.options import on_device
from pancrafter.sensors import contracts_of
from pancrafter.settings import Settings
from pancrafter.states import SceneKey, State
from pancrafter.steps import Outcome
from pancrafter.summary import verdict_line

if TYPE_CHECKING:
    from pancrafter.ledger import Ledger
    from pancrafter.states import LedgerRow


@flow(name="sharpen-scene", flow_run_name="{key}")
def sharpen_scene(key: str, settings: SettingsParameter) -> Outcome | RunState[Any] | None:
    """Stage, sharpen, assess and publish one scene; running it again on a finished scene changes nothing.

    Args:
        key: ``collection/item_id``. A scene that waits in the ledger for this run's recipe is not searched for; of
            others, the source is asked for this one item only.
        settings: The run; what is left out is `PANCRAFTER_*` of the worker.

    Returns:
        What became of it; None when there is nothing to do or another worker has it. The run fails where the scene is
        not found, or will not be made before a person has done something.
    """
    sign_run()
    settings = on_device(with_environment(settings))
    scene = SceneKey.parse(key, settings.sink)
    with open_ledger(settings) as ledger:
        if not _is_planned(ledger.show(scene), settings):
            only = {"collections": (scene.collection,), "ids": (scene.item_id,)}
            discovery.discover(settings.model_copy(update=only), ledger)
        outcome, row = None, ledger.show(scene)
        if row is not None and row.state is State.ELIGIBLE:
            with open_compute(settings) as compute:
                outcome = process(key, settings, compute, ledger)
            row = ledger.show(scene)
    if outcome is None:
        return _left_as_it_is(row, settings)
    leave_artifacts([outcome], command("redrive KEY", settings))
    if outcome.verdict == "held":
        return Failed(message=f"held: {outcome.reason}")
    return Completed(message=verdict_line([outcome]), data=outcome)


def _left_as_it_is(row: LedgerRow | None, settings: Settings) -> RunState[Any]:
    """The end of a run that did nothing: why, and whether that is well."""
    if row is None:
        return Failed(message=f"not found in {settings.source}; look at the spelling of collection and item id")
    message = f"nothing was done, the scene is {row.state}" + (f": {row.reason}" if row.reason else "")
    if row.state in {State.FOUND, State.REFUSED, State.HELD, State.DEAD}:
        return Failed(message=message)
    return Completed(message=message)


def _is_planned(row: LedgerRow | None, settings: Settings) -> bool:
    """Whether a scene waits to be made as these settings would make it."""
    if row is None or row.scene is None or row.state is not State.ELIGIBLE:
        return False
    return row.recipe == discovery.work_of(row.scene, settings, contracts_of(settings)).recipe


def process(key: str, settings: Settings, compute: Compute, ledger: Ledger) -> Outcome | None:
    """One scene inside a flow, each step a task run that bears its name."""
    report = get_run_logger().info
    with steps.claimed(ledger, key, settings, report) as work, _no_fault_of_the_scene():
        if work is None:
            return None
        staged = _named(tasks.stage, key)(work, settings, compute, ledger)
        sharpened = _named(tasks.sharpen, key)(work, staged, settings, compute, ledger, report)
        assessed = _named(tasks.assess, key)(work, staged, sharpened, settings, compute, ledger, report)
        outcome: Outcome = _named(tasks.publish, key)(work, staged, assessed, settings, ledger, report)
        return outcome


class OrchestratorError(PancrafterError):
    """Prefect does not answer, or ended a step by itself: no scene's fault."""

    kind = "system"


@contextlib.contextmanager
def _no_fault_of_the_scene() -> Iterator[None]:
    """Tell Prefect's own errors from those of the steps, which count as attempts."""
    try:
        yield
    except (PrefectException, ConcurrencySlotAcquisitionError, httpx.HTTPError) as error:
        reason = f"Prefect: {type(error).__name__}: {error}; look whether its server answers, then run again"
        raise OrchestratorError(reason) from error


def _named(step: Task[tasks.P, tasks.R], key: str) -> Task[tasks.P, tasks.R]:
    return step.with_options(task_run_name=f"{step.name} {key}")
