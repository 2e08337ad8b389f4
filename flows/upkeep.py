"""Flows that keep order: census, sweep and redrive, as the commands of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.parameters import SettingsParameter, with_environment
from flows.report import HOOKS_ON_TROUBLE, MOST_ROWS
from flows.runs import crash_gone_runs, sign_run
from pancrafter.census import take_census
from pancrafter.ledger import open_ledger
from pancrafter.states import State as SceneState
from pancrafter.summary import shown_of
from pancrafter.sweep import sweep as do_sweep
from pancrafter.words import counted


@flow(name="census", flow_run_name="census {settings.sink}", **HOOKS_ON_TROUBLE)
def census(
    settings: SettingsParameter,
    notify: str | None = None,  # noqa: ARG001 - read by the hooks
    *,
    checksums: bool = False,
) -> State[Any]:
    """Compare source, ledger, files and output catalog; the run fails if anything differs.

    Args:
        settings: The places.
        notify: Webhook block that is told about differences.
        checksums: Read every published file instead of comparing sizes.
    """
    sign_run()
    taken = take_census(with_environment(settings), checksums=checksums)
    shown = shown_of(taken)
    rows = [difference.model_dump() for difference in shown]
    left_out = len(taken.differences) - len(rows)
    more = f"; {left_out} more are left out here" if left_out else ""
    create_table_artifact(rows, key="census", description=f"What differs, and the command that mends it{more}")
    scenes, items = counted(taken.source_scenes, "scene"), counted(taken.catalog_items, "item")
    places = f"{scenes} in the source, {items} published"
    if taken.clean:
        return Completed(message=f"clean: {places}", data=taken.model_dump(mode="json"))
    fixes = "; ".join(dict.fromkeys(difference.fix for difference in shown))
    return Failed(message=f"{counted(len(taken.differences), 'difference')}, {places}; mend with: {fixes}"[:2000])


@flow(name="sweep", flow_run_name="sweep {settings.sink}")
def sweep(settings: SettingsParameter) -> State[Any]:
    """Free the scenes of dead workers, remove what they left behind, and close flow runs whose process is gone."""
    sign_run()
    crashed = crash_gone_runs()
    swept = do_sweep(with_environment(settings))
    _name([f"free again: {key}" for key in swept.freed])
    _name([f"dead, lost too many workers: {key}" for key in swept.dead])
    _name([f"removed {leftover.place}/{leftover.name}: {leftover.reason}" for leftover in swept.removed])
    message = f"{len(swept.freed)} freed, {len(swept.dead)} dead, {counted(len(swept.removed), 'leftover')} removed"
    closed = f", {counted(len(crashed), 'flow run')} closed" if crashed else ""
    return Completed(message=message + closed, data=swept.model_dump(mode="json"))


@flow(name="redrive", flow_run_name="redrive {settings.sink}")
def redrive(
    settings: SettingsParameter,
    states: tuple[SceneState, ...] = (SceneState.DEAD, SceneState.HELD),
    code: str | None = None,
    reason_contains: str | None = None,
) -> State[Any]:
    """Give failed scenes another try after their cause is mended; the next nightly takes them.

    Args:
        settings: The places.
        states: Rest states to take.
        code: Only this refusal code or error class.
        reason_contains: Only where the reason contains this text.
    """
    sign_run()
    settings = with_environment(settings)
    with open_ledger(settings) as ledger:
        result = ledger.redrive(sink=settings.sink, states=states, code=code, reason_contains=reason_contains)
    _name([f"eligible again: {key}" for key in result.redriven])
    _name([f"left as it is: {key}: {reason}" for key, reason in result.left])
    message = f"{len(result.redriven)} redriven, {len(result.left)} left"
    return Completed(message=message, data=[str(key) for key in result.redriven])


def _name(lines: Sequence[str]) -> None:
    """Tell the log what was done, of very much the first."""
    for line in lines[:MOST_ROWS]:
        get_run_logger().info(line)
    if len(lines) > MOST_ROWS:
        get_run_logger().info("and %d more", len(lines) - MOST_ROWS)
