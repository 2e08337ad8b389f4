"""Flow: one scene from claim to confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import flow, get_run_logger

from flows import tasks
from pancrafter import steps
from pancrafter.compute import Compute, open_compute
from pancrafter.settings import Settings
from pancrafter.steps import Outcome

if TYPE_CHECKING:
    from pancrafter.ledger import Ledger


@flow(name="sharpen-scene", flow_run_name="{key}")
def sharpen_scene(key: str, settings: Settings) -> Outcome | None:
    """Stage, sharpen, assess and publish one scene; running it again on a finished scene changes nothing.

    Args:
        key: ``collection/item_id`` of a scene that is eligible in the ledger; it is searched for if it is not there.
        settings: The run.

    Returns:
        What became of it; None when there is nothing to do or another worker has it.
    """
    with steps.open_ledger(settings) as ledger:
        steps.discover(settings, ledger)
        with open_compute(settings) as compute:
            return process(key, settings, compute, ledger)


def process(key: str, settings: Settings, compute: Compute, ledger: Ledger) -> Outcome | None:
    """One scene inside a flow, each step a task run."""
    report = get_run_logger().info
    with steps.claimed(ledger, key, settings) as work:
        if work is None:
            return None
        staged = tasks.stage(work, settings, compute, ledger)
        sharpened = tasks.sharpen(work, staged, settings, compute, ledger, report)
        assessed = tasks.assess(work, staged, sharpened, settings, compute, ledger, report)
        outcome: Outcome = tasks.publish(work, staged, assessed, settings, ledger, report)
        return outcome
