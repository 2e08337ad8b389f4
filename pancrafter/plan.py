"""What a run would do, without doing it: the source is searched and compared with the ledger, nothing is claimed.

Figures come from metadata, ledger, file sizes and local file headers; no pixel is read, and what is not known is
said to be unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pancrafter.crawl import is_local, local_path
from pancrafter.errors import InvalidSceneError
from pancrafter.ledger import IN_WORK, LedgerRow, State, Work, verdict_on_known
from pancrafter.settings import Settings
from pancrafter.steps import contracts_of, look, open_ledger, output_collection_id, work_of
from pancrafter.types import Record, Refusal, Scene

if TYPE_CHECKING:
    from pancrafter.sensors import SensorContract

MEANINGS: Mapping[str, str] = {
    "new": "not seen before",
    "changed": "source, weights, contract or settings changed; the new result will supersede the old one",
    "waiting": "found before and not done yet; finished blocks are kept",
    "lost": "published before, but gone from the output catalog",
    "paused": "failed in a way that may pass; tried again after a pause",
    "in work": "a worker has it now",
    "done": "published and read back",
    "held": "waits for a person",
    "dead": "failed; see `pancrafter ledger list --state dead`",
    "refused": "will not be sharpened",
}
"""Every verdict, in the order in which they are shown."""

TO_DO = frozenset({"new", "changed", "waiting", "lost"})
"""Verdicts whose scenes a run would sharpen."""

_RESTING = {State.CONFIRMED: "done", State.DEAD: "dead", State.HELD: "held", State.REFUSED: "refused"}


class PlanLine(Record):
    """How many scenes share a verdict."""

    verdict: str
    scenes: int
    meaning: str
    to_do: bool


class Plan(Record):
    """What a search found and what would be done about it now."""

    source: str
    sink: str
    found: int
    lines: tuple[PlanLine, ...]
    scenes: int = Field(description="Scenes a run would sharpen, --limit counted in.")
    sensors: dict[str, int] = Field(description="Sensor -> scenes to sharpen.")
    refusals: dict[str, int] = Field(description="Refusal code -> items.")
    mpx: float = Field(description="PAN megapixels of the scenes to sharpen whose size is known.")
    mpx_known: int = Field(description="How many of them that are.")
    read_bytes: int = Field(description="Size of the source files of the scenes to sharpen where it is known.")
    read_bytes_known: int


def make_plan(settings: Settings) -> Plan:
    """Search the source of ``settings`` and say what a run would do.

    Raises:
        SourceError: The source cannot be searched.
        SinkError: The output catalog cannot be read.
        LedgerError: The ledger cannot be read.
        WeightsError: The weights do not exist.
    """
    contracts = contracts_of(settings)
    found = list(look(settings, contracts))
    scenes = [entry for entry in found if isinstance(entry, Scene)]
    refusals = [entry for entry in found if isinstance(entry, Refusal)]
    verdicts = _verdicts(scenes, settings, contracts)
    counts = Counter(verdicts.values()) + Counter({"refused": len(refusals)})
    chosen = sorted((s for s in scenes if verdicts[s.key] in TO_DO), key=lambda scene: scene.acquired)[: settings.limit]
    sizes = [size for scene in chosen if (size := pan_pixels(scene)) is not None]
    weights = [size for scene in chosen if (size := source_bytes(scene)) is not None]
    return Plan(
        source=settings.source,
        sink=settings.sink,
        found=len(found),
        lines=tuple(
            PlanLine(verdict=name, scenes=counts[name], meaning=meaning, to_do=name in TO_DO)
            for name, meaning in MEANINGS.items()
            if counts[name]
        ),
        scenes=len(chosen),
        sensors=dict(Counter(scene.sensor for scene in chosen)),
        refusals=dict(Counter(refusal.code for refusal in refusals)),
        mpx=sum(sizes) / 1e6,
        mpx_known=len(sizes),
        read_bytes=sum(weights),
        read_bytes_known=len(weights),
    )


def verdict_on(row: LedgerRow | None, work: Work, *, now: datetime, published: bool) -> str:
    """What a run would make of a recognised scene.

    Args:
        row: What the ledger knows about it.
        work: The scene as it was found now, with the recipe of now.
        now: Scenes whose pause ends later are ``paused``.
        published: Whether the item the ledger calls confirmed is in the output catalog.
    """
    if row is None:
        return "new"
    if row.state in IN_WORK:
        return "in work"
    known = {name: getattr(row, name) for name in ("state", "fingerprint", "recipe", "code", "reason")}
    if verdict_on_known(known, work) == "changed":
        return "changed"
    if row.state is State.ELIGIBLE:
        return "paused" if row.not_before is not None and row.not_before > now else "waiting"
    return "lost" if row.state is State.CONFIRMED and not published else _RESTING[row.state]


def pan_pixels(scene: Scene) -> int | None:
    """PAN pixels from the header of a local file; None for remote or unreadable files."""
    from pancrafter.pair import read_file_header

    if not is_local(scene.pan.href):
        return None
    try:
        rows, cols = read_file_header(local_path(scene.pan.href)).shape_yx
    except InvalidSceneError:
        return None
    return rows * cols


def source_bytes(scene: Scene) -> int | None:
    """Size of the scene's files; None if any of them is remote or missing."""
    paths = {ref.href for ref in (scene.pan, *scene.ms)}
    try:
        return sum(local_path(href).stat().st_size for href in paths) if all(map(is_local, paths)) else None
    except OSError:
        return None


def _verdicts(scenes: Sequence[Scene], settings: Settings, contracts: Mapping[str, SensorContract]) -> dict[str, str]:
    """Scene key -> verdict; a ledger that does not exist yet is not made."""
    if settings.ledger_url is None and not (Path(settings.state_dir) / "ledger.db").is_file():
        return {scene.key: "new" for scene in scenes}
    now, present = datetime.now(UTC), _published_items(settings)
    with open_ledger(settings) as ledger:
        rows = ledger.rows_of(settings.sink, [(scene.collection, scene.item_id) for scene in scenes])
        verdicts = {}
        for scene in scenes:
            row = rows.get((scene.collection, scene.item_id))
            outputs = present.get(output_collection_id(scene.collection), frozenset())
            published = row is not None and row.output_item_id in outputs
            work = work_of(scene, settings, contracts)
            verdicts[scene.key] = verdict_on(row, work, now=now, published=published)
        return verdicts


def _published_items(settings: Settings) -> dict[str, frozenset[str]]:
    from pancrafter.publish import StaticSink

    sink = StaticSink(settings.sink)
    return {name: frozenset(sink.item_ids(name)) for name in sink.collection_ids()}
