"""Flows over many scenes: the nightly look at what is new, and backfills of a part of the archive."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from flows.parameters import SettingsParameter, WorkSettingsParameter, with_environment
from flows.report import HOOKS, Progress, failures_of, leave_artifacts
from flows.runs import crash_gone_runs, sign_run
from flows.scene import process
from pancrafter import discovery, runs
from pancrafter.backfill import WINDOW_DAYS
from pancrafter.backfill import backfill as work_through
from pancrafter.census import command
from pancrafter.compute import Compute
from pancrafter.errors import PancrafterError
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.options import on_device
from pancrafter.plan import Budget, check_budget, make_plan, plan_text
from pancrafter.selection import Selection
from pancrafter.settings import Settings, WorkSettings
from pancrafter.states import Look
from pancrafter.states import State as SceneState
from pancrafter.steps import Outcome
from pancrafter.summary import verdict_line
from pancrafter.words import counted

MOST_LOOKBACK_DAYS = 36_500
"""A century: longer ago nothing was acquired."""

Outcomes = list[Outcome] | State[Any]
"""What became of every scene, as the state of the run: its message is the summary."""

NIGHTLY_PRIORITY = 10
"""Blocks of a nightly run go before those of a backfill where both share a Dask cluster."""


@flow(name="nightly", flow_run_name="nightly {settings.source}", **HOOKS)
def nightly(
    settings: SettingsParameter,
    lookback_days: Annotated[int, Field(ge=0, le=MOST_LOOKBACK_DAYS)] | None = None,
    notify: str | None = None,  # noqa: ARG001 - read by the hooks
) -> Outcomes:
    """Sharpen everything new in the source.

    Args:
        settings: The run; what is left out is `PANCRAFTER_*` of the worker.
        lookback_days: Search only scenes that were acquired, updated or created in the last days; longer where the last
            look was longer ago, so that missed nights become one window. What earlier runs left to do (redriven,
            released, beyond a limit) is taken too. None searches the period of the settings.
        notify: Webhook block that is told how the run ended: the morning report, and failures.

    Raises:
        ScenesFailedError: Some scenes failed; all others are done.
    """
    _start()
    settings = with_environment(settings)
    settings = settings.model_copy(update={"priority": max(settings.priority, NIGHTLY_PRIORITY)})
    started = reported = None
    if lookback_days is not None:
        last, started = _last_look(settings)
        since = (last.started if last else started) - timedelta(days=lookback_days)
        reported = last.ended if last else since  # nights that were interrupted since then left no page
        get_run_logger().info("looking for what was acquired or changed since %s", f"{since:%Y-%m-%d %H:%M} UTC")
        settings = settings.model_copy(update={"new_since": since})
    try:
        outcomes = _sharpen(settings, since=reported)
    except runs.RunStoppedError as error:
        return _stopped(settings, error, error.outcomes)
    if started is not None:
        with open_ledger(settings) as ledger:
            ledger.note_look(settings.sink, _looked_at(settings), started, verdict_line(outcomes))
    return _concluded(settings, outcomes)


@flow(name="backfill", flow_run_name="backfill {settings.source}", **HOOKS)
def backfill(
    settings: WorkSettingsParameter,
    selection: Selection,
    window_days: Annotated[int, Field(ge=1)] = WINDOW_DAYS,
    budget: Budget | None = None,
    notify: str | None = None,  # noqa: ARG001 - read by the hooks
    *,
    plan_only: bool = False,
) -> Outcomes:
    """Sharpen a part of the archive, window after window, newest first; what is done is skipped, so it can be repeated.

    Args:
        settings: The run, whatever it is about; what is left out is `PANCRAFTER_*` of the worker.
        selection: Which part: period, area, collections, ids, or what certain weights made.
        window_days: Length of a window; without a period there is one window.
        budget: Refuse to start if the plan is above it.
        notify: Webhook block that is told how the run ended.
        plan_only: Leave the plan as an artifact and do nothing else.

    Raises:
        ScenesFailedError: Some scenes failed; all others are done.
        OverBudgetError: The plan is above the budget; nothing was started.
    """
    _start()
    started = datetime.now(UTC)
    chosen = selection.applied_to(with_environment(settings))
    plan = make_plan(chosen)
    create_markdown_artifact(f"```\n{plan_text(plan)}\n```", key="plan", description="What this backfill is about")
    if plan_only:
        return Completed(message=f"plan only: {counted(plan.scenes, 'scene')} to sharpen", data=[])
    if budget is not None:
        check_budget(plan, budget)
    try:
        return _concluded(chosen, work_through(chosen, window_days, partial(_sharpen, since=started, is_part=True)))
    except runs.RunStoppedError as error:
        return _stopped(chosen, error, error.outcomes)


class ScenesFailedError(PancrafterError):
    """A run is over and some of its scenes need a person. ``outcomes`` holds all of them."""

    def __init__(self, message: str, outcomes: list[Outcome]) -> None:
        super().__init__(message)
        self.outcomes = outcomes

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.outcomes))


def _start() -> None:
    """Sign the run, and close those whose processes died."""
    sign_run()
    for name in crash_gone_runs():
        get_run_logger().warning("flow run %s was left running by a process that is gone", name)


def _last_look(settings: Settings) -> tuple[Look | None, datetime]:
    """The last finished look, and the present, by the ledger's clock.

    A selection that is new, changed, or older than its marks goes on from the last look at any part of the source.
    """
    with open_ledger(settings) as ledger:
        last, now = ledger.last_look(settings.sink, _looked_at(settings)), ledger.now()
        if last is None:
            last = ledger.last_look(settings.sink, settings.source, or_part=True)
            text = "no night looked at just this part of the source yet; what the window leaves out is for a backfill"
            get_run_logger().warning(text)
    return last, now


def _looked_at(settings: Settings) -> str:
    """What a nightly looks through, as its looks are noted: the source, with a mark if it is a part of it only.

    So another nightly over another part of the source does not hide that this one missed nights.
    """
    part = settings.model_dump(mode="json", exclude={*WorkSettings.model_fields, "new_since"}, exclude_defaults=True)
    mark = hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:12]
    return f"{settings.source} {mark}" if part else settings.source


def _sharpen(settings: Settings, *, since: datetime | None = None, is_part: bool = False) -> list[Outcome]:
    """Everything that the settings ask for; the report page is about what happened ``since``, by default since now."""
    log, started = get_run_logger(), since or datetime.now(UTC)
    settings = on_device(settings)
    with open_ledger(settings) as ledger:
        found = discovery.discover(settings, ledger)
        log.info(
            "%d new, %d changed, %d known, %d refused, %d to do, %d of them left over from earlier runs",
            found.counts.new,
            found.counts.changed,
            found.counts.known,
            len(found.refused),
            len(found.eligible),
            found.left_over,
        )
        progress = Progress(len(found.eligible), "scenes")

        def make(key: str, settings: Settings, compute: Compute, ledger: Ledger) -> Outcome | None:
            try:
                outcome = process(key, settings, compute, ledger)
            except PancrafterError as error:
                if error.kind != "system":  # such a one ends the run, as does being cancelled
                    progress.step()
                raise
            progress.step()
            return outcome

        run = runs.Run(settings, ledger, log.info, since=started, process=make, complain=log.error, is_part=is_part)
        return run.make_found(found)


def _stopped(settings: Settings, error: PancrafterError, outcomes: list[Outcome]) -> Outcomes:
    """The end of a run after an error that is no scene's fault; what was finished before is reported all the same."""
    leave_artifacts(outcomes, command("redrive KEY", settings))
    return Failed(message=f"stopped: {error}; before that: {verdict_line(outcomes)}", data=error)


def _concluded(settings: Settings, outcomes: list[Outcome]) -> Outcomes:
    leave_artifacts(outcomes, command("redrive KEY", settings))
    failed = [outcome for outcome in outcomes if outcome.failed]
    if failed:
        message = f"{len(failed)} of {len(outcomes)} scenes failed: {failures_of(outcomes)}"
        # Returned, not raised: the run ends as failed without the traceback of a defect.
        return Failed(message=message, data=ScenesFailedError(message, outcomes))
    return Completed(message=verdict_line(outcomes) + _waiting(settings), data=outcomes)


def _waiting(settings: Settings) -> str:
    """How many scenes wait for a person, mostly since earlier runs: a failed one that is retried passes them over."""
    with open_ledger(settings) as ledger:
        counts = ledger.counts(settings.sink)
    waiting = ", ".join(f"{counts[state]} {state}" for state in (SceneState.DEAD, SceneState.HELD) if counts[state])
    return f"; waiting for a person: {waiting}" if waiting else ""
