"""What a run leaves in Prefect for people: progress, the table of scenes, failures with their remedy, and a picture."""

from __future__ import annotations

import base64
import contextlib
import io
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from pancrafter.steps import Outcome

PICTURE_PX = 900
"""Longest edge of the before/after picture inside Prefect; the catalog has the whole one."""

MOST_ROWS = 200
"""Scenes in the table, and failures with their command: the page of a run loads all of them at once."""

MOST_NAMED = 20
"""Failures in the message of a run, which the webhook sends on."""


@contextlib.contextmanager
def _if_prefect_answers() -> Iterator[None]:
    """A run does not end for want of a page in Prefect: ledger and report page hold what became of the scenes."""
    try:
        yield
    except httpx.HTTPError as error:
        text = "not shown in Prefect, whose server did not take it: %s: %s"
        get_run_logger().warning(text, type(error).__name__, error)


class Progress:
    """A progress bar of a run."""

    @_if_prefect_answers()
    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._done = 0
        self._what = what
        self._id: UUID | None = None
        if total:
            created = create_progress_artifact(0.0, key="progress", description=self._text())
            assert isinstance(created, UUID)
            self._id = created

    @_if_prefect_answers()
    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._id is not None:
            update_progress_artifact(self._id, 100.0 * self._done / self._total, description=self._text())

    def _text(self) -> str:
        return f"{self._done} of {self._total} {self._what}"


@_if_prefect_answers()
def leave_artifacts(outcomes: Sequence[Outcome], redrive: str) -> None:
    """The run's table, the failures with the command that gives them another try, and one before/after picture.

    Of very many scenes the failed ones come first, and those that were turned away last.
    """
    ranked = sorted(outcomes, key=lambda outcome: (not outcome.failed, outcome.turned_away))[:MOST_ROWS]
    of = f"{len(ranked)} of {len(outcomes)} scenes" if len(ranked) < len(outcomes) else "every scene"
    create_table_artifact([_table_row(o) for o in ranked], key="scenes", description=f"What became of {of}")
    failed = [outcome for outcome in outcomes if outcome.failed]
    if failed:
        lines = [
            f"- **{o.key}**: {o.reason}\n  after a fix: `{redrive.replace('KEY', shlex.quote(o.key))}`"
            for o in failed[:MOST_ROWS]
        ]
        if len(failed) > MOST_ROWS:
            lines.append(f"- and {len(failed) - MOST_ROWS} more, as the ledger lists them")
        create_markdown_artifact("\n".join(lines), key="failures", description="Scenes that need a person")
    pictured = [outcome for outcome in outcomes if outcome.picture_href]
    if pictured:
        _leave_picture(pictured[0])


def failures_of(outcomes: Sequence[Outcome]) -> str:
    """The failed scenes with their reasons; of very many the first ones."""
    named = [f"{outcome.key}: {outcome.reason}" for outcome in outcomes if outcome.failed]
    more = [f"and {len(named) - MOST_NAMED} more"] if len(named) > MOST_NAMED else []
    return "; ".join(named[:MOST_NAMED] + more)


async def announce(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:  # Any: Flow over all parameters
    """Hook: send how a run ended to the webhook block that its parameter ``notify`` names. Never fails the run.

    Called by a worker too, outside of the run and with these names, where it was cancelled or its process died.
    """
    from prefect.blocks.webhook import Webhook

    name = (flow_run.parameters or {}).get("notify")
    if not name:
        return
    ended = "Cancelled" if state.is_cancelling() else state.name  # it is called while a worker cancels the run
    payload = {
        "flow": flow.name,
        "run": flow_run.name,
        "state": ended,
        "text": f"{flow_run.name}: {ended}. {state.message or ''}".strip(),
    }
    try:
        webhook: Any = await Webhook.aload(name)  # Any: its type parameter is lost on the way
        await webhook.call(payload)
    except Exception as error:  # noqa: BLE001 - whatever keeps the message from arriving, the work itself is done
        flow_run_logger(flow_run).error("webhook %s could not be told: %s: %s", name, type(error).__name__, error)


HOOKS_ON_TROUBLE: dict[str, Any] = {
    "on_failure": [announce],
    "on_crashed": [announce],
    "on_cancellation": [announce],
}
HOOKS: dict[str, Any] = {"on_completion": [announce], **HOOKS_ON_TROUBLE}


def _table_row(outcome: Outcome) -> dict[str, Any]:
    quality = outcome.quality
    return {
        "scene": outcome.key,
        "sensor": outcome.sensor,
        "verdict": outcome.verdict,
        "seconds": _rounded(outcome.seconds, 1),
        "Mpx/s": _rounded(outcome.mpx_per_s, 3),
        "HQNR": _rounded(quality.hqnr, 3) if quality else None,
        "gain": _rounded(quality.gain_over_classical, 3) if quality else None,
        "reason": outcome.reason,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    """Few digits: the table of the UI is narrow, and hides its last columns."""
    return None if value is None else round(value, digits)


def _leave_picture(outcome: Outcome) -> None:
    """A small copy inside the artifact itself: browsers cannot look into local folders and private buckets."""
    import fsspec
    from PIL import Image

    assert outcome.picture_href is not None
    try:
        with fsspec.open(outcome.picture_href, "rb") as file, Image.open(file) as picture:
            picture.thumbnail((PICTURE_PX, PICTURE_PX))
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=80)
    except Exception as error:  # noqa: BLE001 - those of botocore have no class in common with others
        get_run_logger().warning("no picture of %s: %s: %s", outcome.key, type(error).__name__, error)
        return
    image = base64.b64encode(buffer.getvalue()).decode()
    name = Path(outcome.picture_href).name
    create_image_artifact(
        f"data:image/jpeg;base64,{image}",
        key="before-after",
        description=f"PAN, MS and sharpened of {outcome.key} ({name})",
    )
