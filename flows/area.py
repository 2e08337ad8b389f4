"""Flows over many scenes: the nightly look at what is new, and backfills of a period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Failed

from flows.scene import process
from pancrafter import steps
from pancrafter.compute import Compute, open_compute
from pancrafter.errors import PancrafterError
from pancrafter.ledger import Ledger
from pancrafter.settings import Settings
from pancrafter.steps import Outcome

Outcomes = list[Outcome] | State[Any]
"""What became of every scene, or the failed state of a run in which some scenes failed."""


@flow(name="nightly", flow_run_name="nightly {settings.source}")
def nightly(settings: Settings, lookback_days: int | None = None) -> Outcomes:
    """Sharpen everything new in the source.

    Args:
        settings: The run.
        lookback_days: Search only scenes acquired in the last days; the window of consecutive nights should overlap.
            None searches the period of the settings.

    Raises:
        ScenesFailedError: Some scenes failed; all others are done.
    """
    if lookback_days is not None:
        settings = settings.model_copy(update={"since": datetime.now(UTC) - timedelta(days=lookback_days)})
    return _sharpen_area(settings)


@flow(name="backfill", flow_run_name="backfill {since:%Y-%m-%d} to {until:%Y-%m-%d}")
def backfill(settings: Settings, since: datetime, until: datetime) -> Outcomes:
    """Sharpen everything acquired between two moments; scenes that are done are skipped, so it can be repeated.

    Raises:
        ScenesFailedError: Some scenes failed; all others are done.
    """
    return _sharpen_area(settings.model_copy(update={"since": since, "until": until}))


class ScenesFailedError(PancrafterError):
    """A run is over and some of its scenes need a person. ``outcomes`` holds all of them."""

    def __init__(self, message: str, outcomes: list[Outcome]) -> None:
        super().__init__(message)
        self.outcomes = outcomes


def _sharpen_area(settings: Settings) -> Outcomes:
    log, started = get_run_logger(), datetime.now(UTC)
    with steps.open_ledger(settings) as ledger:
        found = steps.discover(settings, ledger)
        log.info(
            "%d new, %d known, %d refused, %d to do",
            found.counts.new,
            found.counts.known,
            len(found.refused),
            len(found.eligible),
        )
        outcomes = [steps.refused_outcome(refusal) for refusal in found.refused]
        if found.eligible:
            with open_compute(settings) as compute:
                log.info("working on %s", compute.description)
                for key in found.eligible:
                    outcome = _process_or_report(key, settings, compute, ledger)
                    outcomes += [] if outcome is None else [outcome]
            steps.leave_report(settings, ledger, started, log.info)
    _leave_artifacts(outcomes)
    failed = [outcome for outcome in outcomes if outcome.failed]
    if failed:
        names = "; ".join(f"{outcome.key}: {outcome.reason}" for outcome in failed)
        message = f"{len(failed)} of {len(outcomes)} scenes failed: {names}"
        # Returned, not raised: the run ends as failed without the traceback of a defect.
        return Failed(message=message, data=ScenesFailedError(message, outcomes))
    return outcomes


def _process_or_report(key: str, settings: Settings, compute: Compute, ledger: Ledger) -> Outcome | None:
    try:
        return process(key, settings, compute, ledger)
    except PancrafterError as error:
        if error.kind == "system":
            raise
        get_run_logger().error("%s", error)
        return steps.outcome_of_failure(key, settings, ledger, error)


def _leave_artifacts(outcomes: list[Outcome]) -> None:
    """The run's table and, per published scene, where its picture is."""
    rows = [
        {
            "scene": o.key,
            "sensor": o.sensor,
            "verdict": o.verdict,
            "seconds": o.seconds,
            "Mpx/s": o.mpx_per_s,
            "HQNR": o.quality.hqnr if o.quality else None,
            "gain": o.quality.gain_over_classical if o.quality else None,
            "reason": o.reason,
        }
        for o in outcomes
    ]
    create_table_artifact(rows, key="scenes", description="What became of every scene of the run")
    failed = [o for o in outcomes if o.failed]
    if failed:
        lines = [f"- **{o.key}**: {o.reason}\n  after a fix: `pancrafter ledger redrive {o.key}`" for o in failed]
        create_markdown_artifact("\n".join(lines), key="failures", description="Scenes that need a person")
