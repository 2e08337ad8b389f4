"""What a run would do and cost, without doing it: the source is searched and compared with the ledger, no claims.

Figures come from metadata, ledger, file sizes and local file headers, times from what the ledger measured before; no
pixel is read, and what is not known is said to be unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from heapq import nsmallest
from typing import Literal

from pydantic import Field

from pancrafter.crawl import is_local, local_path
from pancrafter.discovery import limits_of, look, output_collection_id, work_of
from pancrafter.errors import InvalidSceneError, PancrafterError
from pancrafter.finds import compared, may_be_published_again, verdict_on_known
from pancrafter.ledger import batches, open_ledger
from pancrafter.recognise import REQUESTER_PAYS
from pancrafter.sensors import contracts_of
from pancrafter.settings import Settings
from pancrafter.states import IN_WORK, LedgerRow, Rate, State, Work
from pancrafter.types import Record, Refusal, Scene
from pancrafter.words import counted

MEANINGS: Mapping[str, str] = {
    "new": "not seen before",
    "changed": "source, weights, contract or settings changed; what is published, if anything, will be superseded",
    "waiting": "found before and not done yet; finished blocks are kept",
    "lost": "published before, but gone from the output catalog",
    "paused": "failed in a way that may pass; tried again after a pause",
    "in work": "a worker has it now",
    "done": "published and read back",
    "held": "waits for a person",
    "dead": "failed; see `pancrafter ledger list --state dead`",
    "incomplete": "waits for items with the rest of its scene",
    "refused": "will not be sharpened",
}
"""Every verdict, in the order in which they are shown."""

TO_DO = frozenset({"new", "changed", "waiting", "lost"})
"""Verdicts whose scenes a run would sharpen."""

_RESTING = {
    State.CONFIRMED: "done",
    State.DEAD: "dead",
    State.HELD: "held",
    State.FOUND: "incomplete",
    State.REFUSED: "refused",
}


_CHARGED_PLACES = ("s3://usgs-landsat/",)
"""Where archives let the reader pay for requests and traffic; items may say so too."""


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
    limits: str = Field(description="What the search was limited to, in brackets; empty: nothing.")
    found: int
    lines: tuple[PlanLine, ...]
    scenes: int = Field(description="Scenes a run would sharpen, --limit counted in.")
    sensors: dict[str, int] = Field(description="Sensor -> scenes to sharpen.")
    refusals: dict[str, int] = Field(description="Refusal code -> items.")
    mpx: float = Field(description="PAN megapixels of the scenes to sharpen whose size is known.")
    mpx_known: int = Field(description="How many of them that are.")
    read_bytes: int = Field(description="Size of the source files of the scenes to sharpen where it is known.")
    read_bytes_known: int
    pixel_bytes: int = Field(
        description="Decoded pixels to read, as staging counts bytes_read: by the rate of finished scenes of the "
        "sensor, with what is read again around missing data; before there are any, by the headers of local files."
    )
    staging_bytes: int = Field(description="Most that one staged scene may take on disk, uncompressed.")
    seconds: float | None = Field(description="Work on the scenes whose size is known; None: nothing measured yet.")
    sharpen_seconds: float | None = Field(description="The part of it that the device is busy.")
    measured_scenes: int = Field(description="How many finished scenes of the ledger the rates come from.")
    money: float | None = Field(description="Seconds at the price per hour of the settings; None: no price or rate.")
    requester_pays: int = Field(description="Scenes whose reading is charged to the reader.")
    requester_pays_bytes: int = Field(description="Size of their files where it is known.")


class Budget(Record):
    """What a run may cost at most; None is no limit. A figure that is not known counts as too much."""

    scenes: int | None = Field(default=None, ge=0, description="Scenes to sharpen.")
    read_gb: float | None = Field(default=None, ge=0, description="Gigabytes of source files.")
    hours: float | None = Field(default=None, ge=0, description="Hours of work.")
    money: float | None = Field(default=None, ge=0, description="Money, in the currency of the price per hour.")
    requester_pays: bool = Field(default=False, description="Whether scenes may be read at the reader's cost.")


class OverBudgetError(PancrafterError):
    """A plan is above its budget: nothing was started."""

    kind = "system"


def check_budget(plan: Plan, budget: Budget) -> None:
    """Refuse a plan that costs more than it may.

    Raises:
        OverBudgetError: It does, or a limited figure is not known; the message names every one.
    """
    unknown = plan.scenes - plan.read_bytes_known
    problems = []
    if budget.scenes is not None and plan.scenes > budget.scenes:
        problems.append(f"{counted(plan.scenes, 'scene')}, allowed {budget.scenes}")
    if budget.read_gb is not None and (unknown or plan.read_bytes > budget.read_gb * 1e9):
        more = f" and {counted(unknown, 'scene')} of unknown size" if unknown else ""
        problems.append(f"{plan.read_bytes / 1e9:.3g} GB to read{more}, allowed {budget.read_gb:g} GB")
    for name, found, allowed in (
        ("hours", None if plan.seconds is None else plan.seconds / 3600, budget.hours),
        ("money", plan.money, budget.money),
    ):
        incomplete = found is None or plan.mpx_known < plan.scenes
        if allowed is not None and plan.scenes and (incomplete or (found is not None and found > allowed)):
            what = f"an unknown amount of {name}" if incomplete else f"{found:.3g} {name}"
            problems.append(f"{what}, allowed {allowed:g}" + (f" ({_why_unknown(plan)})" if incomplete else ""))
    if plan.requester_pays and not budget.requester_pays:
        problems.append(f"{counted(plan.requester_pays, 'scene')} at the reader's cost, allowed none")
    if problems:
        advice = "raise it, choose less, or leave that limit out"
        raise OverBudgetError(f"the plan is above the budget: {'; '.join(problems)}; {advice}")


def _why_unknown(plan: Plan) -> str:
    """Why there is no figure of the work, and what would give one."""
    if plan.seconds is None:
        return "nothing was measured with this device yet: make a few scenes first, with --limit"
    if plan.mpx_known < plan.scenes:
        return f"the size of {counted(plan.scenes - plan.mpx_known, 'scene')} is not known: remote or unreadable files"
    return "no price is set: PANCRAFTER_PRICE_PER_HOUR"


def make_plan(settings: Settings) -> Plan:
    """Search the source of ``settings`` and say what a run would do.

    Raises:
        SourceError: The source cannot be searched.
        SinkError: The output catalog cannot be read.
        LedgerError: The ledger cannot be read.
        WeightsError: The weights do not exist.
    """
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()

    def to_do() -> Iterator[Scene]:
        for verdict, entry in _judged(settings):
            counts[verdict] += 1
            if isinstance(entry, Refusal):
                refusals[entry.code] += 1
            elif verdict in TO_DO:
                yield entry

    ahead = _Ahead(_measured_rates(settings))
    first = to_do() if settings.limit is None else nsmallest(settings.limit, to_do(), key=lambda scene: scene.acquired)
    for scene in first:
        ahead.add(scene)
    return Plan(
        source=settings.source,
        sink=settings.sink,
        limits=limits_of(settings),
        found=counts.total(),
        lines=tuple(
            PlanLine(verdict=name, scenes=counts[name], meaning=meaning, to_do=name in TO_DO)
            for name, meaning in MEANINGS.items()
            if counts[name]
        ),
        scenes=ahead.sensors.total(),
        sensors=dict(ahead.sensors),
        refusals=dict(refusals),
        mpx=ahead.pixels / 1e6,
        mpx_known=ahead.pixels_known,
        read_bytes=ahead.read_bytes,
        read_bytes_known=ahead.read_bytes_known,
        pixel_bytes=round(ahead.pixel_bytes),
        staging_bytes=ahead.staging_bytes,
        seconds=ahead.seconds if ahead.rates else None,
        sharpen_seconds=ahead.sharpen_seconds if ahead.rates else None,
        measured_scenes=len(ahead.rates),
        money=settings.money(ahead.seconds) if ahead.rates else None,
        requester_pays=ahead.charged,
        requester_pays_bytes=ahead.charged_bytes,
    )


def plan_text(plan: Plan) -> str:
    """The plan for people, without the table of verdicts."""
    lines = [f"{counted(plan.found, 'item')} found in {plan.source} {plan.limits}".rstrip()]
    if plan.refusals:
        lines.append(f"refused because: {_shares(plan.refusals)}")
    if not plan.scenes:
        return "\n".join([*lines, "nothing to do"])
    disk = f"up to {plan.staging_bytes / 1e6:.1f} MB for a staged scene"
    lines += [
        f"to sharpen: {counted(plan.scenes, 'scene')} ({_shares(plan.sensors)}) into {plan.sink}",
        f"PAN size:   {_known(f'{plan.mpx:.2f} Mpx', plan.mpx_known, plan.scenes)}",
        f"to read:    {_known(f'{plan.read_bytes / 1e6:.1f} MB', plan.read_bytes_known, plan.scenes)}",
        f"disk:       {_known(disk, plan.mpx_known, plan.scenes)}",
    ]
    if plan.seconds is None or plan.sharpen_seconds is None:
        lines.append("work:       unknown, nothing was measured with this device yet")
    else:
        rate = f"as measured on {counted(plan.measured_scenes, 'scene')}"
        money = "" if plan.money is None else f", {plan.money:.2f} at the price per hour"
        device = f"{plan.sharpen_seconds:.0f} s of them sharpening"
        work = _known(f"{plan.seconds:.0f} s, {device}, {rate}{money}", plan.mpx_known, plan.scenes)
        lines.append(f"work:       {work}")
    if plan.requester_pays:
        size = plan.requester_pays_bytes / 1e9
        lines.append(
            f"at your cost: {counted(plan.requester_pays, 'scene')} in requester-pays storage ({size:.2f} GB known)"
        )
    return "\n".join(lines)


def _shares(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda entry: -entry[1]))


def _known(text: str, known: int, total: int) -> str:
    """A figure with how many scenes it covers: unknown ones are not guessed."""
    if known == total:
        return text
    return f"{text}, known for {known} of {total} scenes" if known else "unknown (remote files)"


class _Ahead:
    """What scenes take, added up one by one, by the rates of finished ones: of the sensor, else (seconds) of all."""

    def __init__(self, rates: Sequence[Rate]) -> None:
        self.rates = rates
        self.sensors: Counter[str] = Counter()
        self.pixels = self.pixels_known = self.read_bytes = self.read_bytes_known = 0
        self.staging_bytes = self.charged = self.charged_bytes = 0
        self.pixel_bytes = self.seconds = self.sharpen_seconds = 0.0
        self._by_sensor: dict[str, list[Rate]] = {}
        for rate in rates:
            self._by_sensor.setdefault(rate.sensor or "", []).append(rate)

    def add(self, scene: Scene) -> None:
        """One more scene to sharpen."""
        pixels, size, charged = pan_pixels(scene), source_bytes(scene), _is_charged(scene)
        self.sensors[scene.sensor] += 1
        self.read_bytes += size or 0
        self.read_bytes_known += size is not None
        self.charged += charged
        self.charged_bytes += (size or 0) * charged
        same = self._by_sensor.get(scene.sensor)
        if pixels is None or same is None:
            self.pixel_bytes += pixel_bytes(scene)
        else:
            self.pixel_bytes += pixels * _per_pixel(same, "bytes_read")
        if pixels is None:
            return
        self.pixels += pixels
        self.pixels_known += 1
        self.staging_bytes = max(self.staging_bytes, _staging_bytes(pixels, len(scene.bands)))
        if self.rates:
            self.seconds += pixels * _per_pixel(same or self.rates, "seconds")
            self.sharpen_seconds += pixels * _per_pixel(same or self.rates, "sharpen_seconds")


def _measured_rates(settings: Settings) -> list[Rate]:
    """What finished scenes took on this device."""
    if not settings.has_ledger:
        return []
    with open_ledger(settings) as ledger:
        return [rate for rate in ledger.rates() if rate.device == settings.device]


def _per_pixel(rates: Sequence[Rate], what: Literal["bytes_read", "seconds", "sharpen_seconds"]) -> float:
    """Large scenes count more: a plan is about their sum."""
    return float(sum(getattr(rate, what) for rate in rates) / sum(rate.pixels for rate in rates))


def _is_charged(scene: Scene) -> bool:
    said = bool(scene.properties.get(REQUESTER_PAYS))
    return said or any(ref.href.startswith(_CHARGED_PLACES) for ref in (scene.pan, *scene.ms))


def _staging_bytes(pan_px: int, bands: int) -> int:
    """PAN, result (2 bytes each), two masks (1 byte), and MS at most at a quarter of PAN's pixels, uncompressed."""
    return pan_px * (2 + 1 + 2 * bands) + pan_px // 4 * (2 * bands + 1)


def pixel_bytes(scene: Scene) -> int:
    """Bytes of the scene's bands as decoded pixels, where local headers tell."""
    import numpy as np

    from pancrafter.pair import read_file_header

    bands = Counter(ref.href for ref in {(ref.href, ref.band): ref for ref in (scene.pan, *scene.ms)}.values())
    total = 0
    for href, count in bands.items():
        if is_local(href):
            with suppress(InvalidSceneError):
                header = read_file_header(local_path(href))
                total += header.shape_yx[0] * header.shape_yx[1] * count * np.dtype(header.dtype).itemsize
    return total


def verdict_on(row: LedgerRow | None, work: Work, *, now: datetime, published: bool) -> str:
    """What a run would make of a recognised scene.

    Args:
        row: What the ledger knows about it.
        work: The scene as it was found now, with the recipe of now.
        now: Scenes whose pause ends later are ``paused``.
        published: Whether the item that the work would make is in the output catalog.
    """
    if row is None:
        return _RESTING[State.CONFIRMED] if published else "new"
    if row.state in IN_WORK:
        return "in work"
    known = compared(row)
    if verdict_on_known(known, work) == "changed":
        again = published and may_be_published_again(known, work) and not row.measures
        return _RESTING[State.CONFIRMED] if again else "changed"
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


def _judged(settings: Settings) -> Iterator[tuple[str, Scene | Refusal]]:
    """Everything in the source with its verdict, in batches; a ledger that does not exist yet is not made."""
    from pancrafter.publish import StaticSink

    contracts, sink = contracts_of(settings), StaticSink(settings.sink)
    present = {name: frozenset(sink.item_ids(name)) for name in sink.collection_ids()}
    with open_ledger(settings) if settings.has_ledger else nullcontext() as ledger:
        for batch in batches(look(settings, contracts)):
            rows: Mapping[tuple[str, str], LedgerRow] = {}
            if ledger is not None:
                keys = [(entry.collection, entry.item_id) for entry in batch if isinstance(entry, Scene)]
                rows = ledger.rows_of(settings.sink, keys)
            now = datetime.now(UTC) if ledger is None else ledger.now()
            for entry in batch:
                if isinstance(entry, Refusal):
                    yield "incomplete" if entry.waits else "refused", entry
                    continue
                work = work_of(entry, settings, contracts)
                row, collection = rows.get((entry.collection, entry.item_id)), output_collection_id(entry.collection)
                published = work.output_item_id in present.get(collection, frozenset())
                if published and row is None:
                    published = sink.is_current(collection, work.output_item_id)
                yield verdict_on(row, work, now=now, published=published), entry
