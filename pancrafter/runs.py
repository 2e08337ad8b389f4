"""The whole pipeline without an orchestrator: what is found is made, scene after scene, or products are made again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pancrafter.discovery import Discovery, discover, limits_of, work_of
from pancrafter.errors import BandCountError, LeaseLostError, PancrafterError
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.model.names import weights_sha256
from pancrafter.models import Product
from pancrafter.plan import MEANINGS, TO_DO, verdict_on
from pancrafter.sensors import SensorContract, contracts_of
from pancrafter.settings import Settings
from pancrafter.states import LedgerRow, SceneKey, State
from pancrafter.steps import Outcome, Report, assess, claimed, publish, sharpen, stage
from pancrafter.types import Record, Refusal, Scene

if TYPE_CHECKING:
    from pancrafter.compute import Compute

Process = Callable[[str, Settings, "Compute", Ledger], "Outcome | None"]
"""Takes one scene from claim to confirmation; None when it is another run's."""


def run(settings: Settings, report: Report, *, since: datetime | None = None) -> list[Outcome]:
    """Discover and process everything, scene after scene; one bad scene does not stop the others.

    Args:
        settings: The run.
        report: Told what goes on.
        since: When the work began that this run is a part of: the report page is about all of it. A part may well find
            nothing, and does not say so.

    Raises:
        RunStoppedError: Nothing else could work either (sink, weights); what was finished before is in it.
        PancrafterError: An error before the first scene (source, sink, ledger).
    """
    started = since or datetime.now(UTC)
    with open_ledger(settings) as ledger:
        run = Run(settings, ledger, report, since=started, is_part=since is not None)
        return run.make_found(discover(settings, ledger))


@dataclass(frozen=True)
class Run:
    """Takes scenes from claim to confirmation one after the other, and leaves the report page of all since it began.

    Attributes:
        settings: What it is about.
        ledger: Where it is written.
        report: Told what goes on.
        since: When it began.
        process: Makes one scene; default: ``process_scene``.
        complain: Told of scenes that failed; default: ``report``.
        is_part: It is a part of other work, and may well find nothing.
    """

    settings: Settings
    ledger: Ledger
    report: Report
    _: KW_ONLY
    since: datetime
    process: Process | None = None
    complain: Report | None = None
    is_part: bool = False

    def make_found(self, found: Discovery) -> list[Outcome]:
        """Make what a discovery found; what it refused or gave up comes first. Errors as of ``make_each``."""
        if not found.counts.seen and not self.is_part:
            self.report(f"nothing found: 0 items in {self.settings.source} match {limits_of(self.settings)}".rstrip())
        before = [refused_outcome(refusal) for refusal in found.refused]
        before += [given_up_outcome(row) for row in found.given_up]
        if found.eligible:
            return self.make_each(found.eligible, before)
        if found.has_news:
            self.leave_report()
        return before

    def make_each(self, keys: Iterable[str], outcomes: list[Outcome]) -> list[Outcome]:
        """What became of these scenes, after the ``outcomes`` of others before.

        Raises:
            RunStoppedError: Nothing else could work either.
        """
        from pancrafter.compute import open_compute

        process = self.process or partial(process_scene, report=self.report)
        with open_compute(self.settings) as compute:
            self.report(f"working {compute.description}")
            for key in keys:
                try:
                    outcome = process(key, self.settings, compute, self.ledger)
                except LeaseLostError as error:
                    self.report(f"{key}: {error}")  # somebody else has it, and will say what became of it
                except PancrafterError as error:
                    if error.kind == "system":
                        self.leave_report(stopped=True)
                        raise RunStoppedError(str(error), outcomes) from error
                    (self.complain or self.report)(f"{key}: {error}")
                    outcomes.append(outcome_of_failure(key, self.settings, self.ledger, error))
                else:
                    outcomes += [] if outcome is None else [outcome]
        self.leave_report()
        return outcomes

    def leave_report(self, *, stopped: bool = False) -> None:
        """Write the report page beside the catalog; a run is not worse for a page that could not be written."""
        from pancrafter.publish import StaticSink
        from pancrafter.report import write_report

        try:
            sink = StaticSink(self.settings.sink)
            address = write_report(sink, ledger=self.ledger, since=self.since, stopped=stopped)
            self.report(f"report page: {address}")
        except PancrafterError as error:
            self.report(f"the report page was not written: {error}")


class RunStoppedError(PancrafterError):
    """A run ended early. ``outcomes`` holds what became of the scenes before."""

    kind = "system"

    def __init__(self, message: str, outcomes: list[Outcome]) -> None:
        super().__init__(message)
        self.outcomes = outcomes


def process_scene(key: str, settings: Settings, compute: Compute, ledger: Ledger, report: Report) -> Outcome | None:
    """Take one scene from claim to confirmation; None when it is another run's (``claimed``).

    Raises:
        PancrafterError: The scene failed; the ledger knows already.
    """
    with claimed(ledger, key, settings, report) as work:
        if work is None:
            return None
        report(f"{key}: staging")
        staged = stage(work, settings, compute, ledger)
        sharpened = sharpen(work, staged, settings, compute, ledger, report)
        assessed = assess(work, staged, sharpened, settings, compute, ledger, report)
        return publish(work, staged, assessed, settings, ledger, report)


class RemakePlan(Record):
    """Products of one model that would be made again with other weights."""

    weights: str
    products: tuple[Product, ...]
    left: tuple[tuple[str, str], ...] = Field(description="Source keys that cannot be made again here, and why.")
    mpx: float
    seconds: float = Field(description="What they took before, as far as the ledger knows.")


def plan_remake(model: str, settings: Settings) -> RemakePlan:
    """Which products of a model the settings' weights would replace; nothing is read or changed.

    Raises:
        WeightsError: The new weights do not exist, or cannot be used for scenes.
    """
    from pancrafter.models import products_of
    from pancrafter.publish import StaticSink

    contracts = contracts_of(settings)
    sha256, products, left, seconds = weights_sha256(settings.weights), [], [], 0.0
    with open_ledger(settings) as ledger:
        now = ledger.now()
        for product in products_of(StaticSink(settings.sink), model):
            row = ledger.show(SceneKey.parse(product.source, settings.sink))
            if product.weights_sha256 == sha256:
                left.append((product.source, "made with these weights already"))
            elif row is None or row.scene is None:
                left.append((product.source, "not in this ledger; give --state-dir of the run that made it"))
            elif obstacle := _obstacle(row, row.scene, settings, contracts, now):
                left.append((product.source, obstacle))
            else:
                products.append(product)
                seconds += float(row.measures.get("seconds") or 0)
    mpx = sum(product.mpx for product in products)
    return RemakePlan(weights=settings.weights, products=tuple(products), left=tuple(left), mpx=mpx, seconds=seconds)


def _obstacle(
    row: LedgerRow, scene: Scene, settings: Settings, contracts: Mapping[str, SensorContract], now: datetime
) -> str | None:
    """Why a scene cannot be made again now, and what to do about it; None if it can."""
    from pancrafter.engine import check_for_scenes

    if scene.sensor not in contracts:
        return f"no contract for {scene.sensor}; give --contracts-dir of the run that made it"
    try:
        check_for_scenes(settings.weights, weights_sha256(settings.weights), len(scene.bands))
    except BandCountError as error:
        return str(error)
    verdict = verdict_on(row, work_of(scene, settings, contracts), now=now, published=True)
    if verdict in TO_DO:
        return None
    if verdict == "refused":
        redrive = f"pancrafter ledger redrive {shlex.quote(str(row.key))}"
        return f"a newer result was refused ({row.code}: {row.reason}); `{redrive}` first"
    if verdict == "held":
        return "a newer result waits for a person; see `pancrafter held list`"
    return MEANINGS[verdict]


def remake(made: RemakePlan, settings: Settings, report: Report) -> list[Outcome]:
    """Carry a plan out: every product's scene becomes work again, under the new weights, superseding the old item.

    A scene becomes work when it is its turn: what an interrupted plan did not come to stays as it is.

    Raises:
        RunStoppedError: Nothing else could work either; what was finished before is in it.
    """
    if not made.products:
        return []
    contracts = contracts_of(settings)

    def process(key: str, settings: Settings, compute: Compute, ledger: Ledger) -> Outcome | None:
        row = ledger.show(SceneKey.parse(key, settings.sink))
        assert row is not None
        assert row.scene is not None
        ledger.record_found(settings.sink, [work_of(row.scene, settings, contracts)])
        return process_scene(key, settings, compute, ledger, report)

    keys = [product.source for product in made.products]
    with open_ledger(settings) as ledger:
        return Run(settings, ledger, report, since=datetime.now(UTC), process=process).make_each(keys, [])


def outcome_of_failure(key: str, settings: Settings, ledger: Ledger, error: PancrafterError) -> Outcome:
    """The row of a scene that failed, as the ledger left it."""
    row = ledger.show(SceneKey.parse(key, settings.sink))
    retried = row is not None and row.state is State.ELIGIBLE
    sensor = row.sensor if row is not None and row.sensor else ""
    return Outcome(key=key, sensor=sensor, verdict="retry later" if retried else "failed", reason=str(error))


def refused_outcome(refusal: Refusal) -> Outcome:
    """The row of an item that is not sharpened, or not yet."""
    verdict: Literal["refused", "waiting"] = "waiting" if refusal.waits else "refused"
    return Outcome(key=refusal.key, sensor=refusal.sensor or "", verdict=verdict, reason=refusal.reason)


def given_up_outcome(row: LedgerRow) -> Outcome:
    """The row of a scene that lost one worker too many: their runs ended before they could tell."""
    return Outcome(key=str(row.key), sensor=row.sensor or "", verdict="failed", reason=row.reason or "")
