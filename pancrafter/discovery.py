"""What there is to do: the source is searched, the ledger told of every item, and asked which scenes may be made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pancrafter import killpoints
from pancrafter.errors import LeaseLostError, SourceError
from pancrafter.ledger import Ledger, batches
from pancrafter.model.names import model_name, planned_sha256
from pancrafter.processes import is_gone
from pancrafter.sensors import SensorContract, contracts_of
from pancrafter.settings import Settings
from pancrafter.states import IN_WORK, WITHDRAWN, FoundCounts, LedgerRow, Standing, State, Work
from pancrafter.types import JOINED, Record, Refusal, Scene
from pancrafter.version import code_version

if TYPE_CHECKING:
    from pancrafter.item import Recipe
    from pancrafter.publish import StaticSink


class Discovery(Record):
    """What a look at the source found and what is to do now."""

    counts: FoundCounts
    refused: tuple[Refusal, ...]
    eligible: tuple[str, ...]
    """Keys of the scenes that may be claimed; those found now come before those left over.

    Last come those tried in vain: without end to their tries, they would take the place of others under each limit.
    """
    left_over: int = 0
    """How many of these were found by earlier looks only."""
    given_up: tuple[LedgerRow, ...] = ()
    """Scenes that lost one worker too many, which this look was the first to see."""

    @property
    def has_news(self) -> bool:
        """Whether the look entered anything: a page may tell of it even if there is nothing to do."""
        return self.counts.new + self.counts.changed > 0 or bool(self.given_up)


LinkedItems = Mapping[str, Mapping[str, str | None]]
"""Output collection -> item -> id of its source item."""

NETWORK_STEPS = {"pan_detail": "put-back", "reprojection": "relative-mtf"}
"""What the engine makes of a network's result, in recipes: scenes made otherwise are made again once."""

HASH_LENGTH = 10
_NOT_IN_ADDRESSES = re.compile(r"[/#?;% ]")
"""Other printable characters stay, as readers find files that are called so, and published addresses do not move."""


def discover(settings: Settings, ledger: Ledger) -> Discovery:
    """Search the source, record every item in the ledger, and say which scenes are to do.

    A scene whose output item vanished from the sink is made again, and one that is new to this ledger but published
    already is confirmed; leases of dead workers of this machine are freed.
    A look for what is new (``new_since``) also takes what earlier ones left to do: scenes that were redriven, released
    by a person or retried, and those beyond a limit.

    Raises:
        SourceError: The source cannot be searched.
        SinkError: The sink cannot be written.
    """
    from pancrafter.publish import StaticSink

    contracts, sink = contracts_of(settings), StaticSink(settings.sink)
    sink.check_writable()
    refused: list[Refusal] = []
    wanted: dict[tuple[str, str], None] = {}

    def entries() -> Iterator[Work | Refusal]:
        for verdict in look(settings, contracts):
            if isinstance(verdict, Refusal):
                if verdict.code != JOINED:  # its scene speaks for it
                    refused.append(verdict)
                yield verdict
            else:
                wanted[verdict.collection, verdict.item_id] = None
                yield work_of(verdict, settings, contracts)

    recognise(ledger, sink, settings)
    swept = ledger.sweep(is_gone=is_gone)  # first: what changed of a scene in work is not entered
    counts = ledger.record_found(settings.sink, entries())
    killpoints.at("found")
    _match_with_outputs(ledger, sink, settings, wanted)
    lost = [(key.collection, key.item_id) for key in swept.dead if key.sink == settings.sink]
    left_over = _enter_left_overs(ledger, settings, contracts, wanted) if settings.new_since else ()
    first, then = _claimable(ledger, settings, wanted), _claimable(ledger, settings, left_over)
    eligible = sorted((*first, *then), key=lambda row: row.in_vain)[: settings.limit]
    return Discovery(
        counts=counts,
        refused=tuple(refused),
        eligible=tuple(str(row.key(settings.sink)) for row in eligible),
        left_over=len({*eligible} & {*then}),
        given_up=tuple(row for row in ledger.rows_of(settings.sink, lost).values() if row.state is State.DEAD),
    )


def _claimable(ledger: Ledger, settings: Settings, wanted: Iterable[tuple[str, str]]) -> list[Standing]:
    """Those that may be claimed, by acquisition."""
    return sorted((row for row in ledger.standing(settings.sink, wanted) if row.claimable), key=_by_acquisition)


def _enter_left_overs(
    ledger: Ledger,
    settings: Settings,
    contracts: Mapping[str, SensorContract],
    found: Container[tuple[str, str]],
) -> list[tuple[str, str]]:
    """What the ledger has to do beside what was found, within the limits of the settings, by the present recipe.

    Once there is enough for the limit of scenes, those acquired later are left for another time; so is always what is
    published by this recipe and waits to be replaced: another run planned that.
    """
    asked_for = _limits(settings, contracts)
    entered: list[tuple[str, str]] = []
    for batch in batches(key for key in ledger.claimable(settings.sink) if key not in found):
        if settings.limit is not None and len(entered) >= settings.limit:
            break
        rows = ledger.rows_of(settings.sink, batch).values()
        planned = [(row, work_of(row.scene, settings, contracts)) for row in rows if row.scene and asked_for(row.scene)]
        works = [work for row, work in planned if work.output_item_id != row.supersedes]
        ledger.record_found(settings.sink, works)
        entered += [(work.scene.collection, work.scene.item_id) for work in works]
    return entered


def _limits(settings: Settings, contracts: Mapping[str, SensorContract]) -> Callable[[Scene], bool]:
    """Whether a scene of the ledger is one that a search with these settings may find, whenever it was new."""
    from pancrafter.catalog import in_space, in_time
    from pancrafter.selection import Area

    area = Area.from_file(settings.aoi) if settings.aoi else None
    rules, ids = settings.access.trusting(settings.source), frozenset(settings.ids)

    def asked_for(scene: Scene) -> bool:
        return (
            scene.sensor in contracts
            and (not settings.collections or scene.collection in settings.collections)
            and (not ids or scene.item_id in ids)
            and in_time({"datetime": scene.acquired}, settings.since, settings.until)
            and in_space(scene.geometry, settings.bbox)
            and (area is None or area.meets(scene.geometry))
            # that of another source, whose run may read it
            and not any(rules.fault(asset.href) for asset in (scene.pan, *scene.ms))
        )

    return asked_for


def look(settings: Settings, contracts: Mapping[str, SensorContract]) -> Iterator[Scene | Refusal]:
    """Everything in the source that lies in the window of the settings, recognised or refused.

    Raises:
        SourceError: The source cannot be searched, or broke off in the middle.
    """
    from pancrafter.catalog import discover as search

    if "://" not in settings.source and not Path(settings.source).exists():
        raise SourceError(f"source {settings.source} does not exist; expected a STAC API URL or a catalog folder")
    from pancrafter.selection import Area

    area = Area.from_file(settings.aoi) if settings.aoi else None
    found = search(
        settings.source,
        since=settings.since,
        until=settings.until,
        bbox=settings.bbox or (area.bbox if area else None),
        contracts=contracts,
        collections=settings.collections or None,
        ids=settings.ids or None,
        changed_since=settings.changed_since,
        new_since=settings.new_since,
        access=settings.access,
    )
    return (entry for entry in found if area is None or isinstance(entry, Refusal) or area.meets(entry.geometry))


def limits_of(settings: Settings) -> str:
    """What a search is limited to, in brackets, for people: a mistyped name would look like nothing to do."""
    limits = {
        "collection": ", ".join(settings.collections),
        "ids": len(settings.ids) or None,
        "from": settings.since,
        "to": settings.until,
        "bbox": settings.bbox,
        "aoi": settings.aoi,
        "changed since": settings.changed_since,
        "new since": settings.new_since,
    }
    said = "; ".join(f"{name} {value}" for name, value in limits.items() if value)
    return f"({said})" if said else ""


def work_of(scene: Scene, settings: Settings, contracts: Mapping[str, SensorContract]) -> Work:
    """The piece of work that a recognised scene is."""
    recipe = planned_recipe(scene, settings, contracts)
    return Work(scene=scene, recipe=recipe.digest, output_item_id=output_item_id(scene, recipe))


def planned_recipe(scene: Scene, settings: Settings, contracts: Mapping[str, SensorContract]) -> Recipe:
    """How a scene would be sharpened: by its contract's method and the chosen weights."""
    from pancrafter.item import NETWORK_METHOD, Recipe

    contract = contracts[scene.sensor]
    network = contract.weights != "none"
    return Recipe(
        method=NETWORK_METHOD if network else "mtf-glp-fs",
        weights=model_name(settings.weights) if network else None,
        weights_sha256=planned_sha256(settings.weights) if network else None,
        contract_digest=contract.digest,
        software_version=code_version(),
        settings={"mtf": "measured"} | (NETWORK_STEPS | {"precision": settings.precision} if network else {}),
    )


def output_item_id(scene: Scene, recipe: Recipe) -> str:
    """The id that follows from source, fingerprint and recipe: the same pixels always get the same id.

    It is a part of addresses, so what ends or changes one is ``_`` in it; the hash tells ids apart all the same.
    """
    text = f"{scene.key}\n{scene.fingerprint}\n{recipe.digest}"
    return f"{output_item_stem(scene.item_id)}{hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]}"


def output_item_stem(item_id: str) -> str:
    """What the ids of all output items of a scene begin with; ``HASH_LENGTH`` characters follow."""
    return f"{_NOT_IN_ADDRESSES.sub('_', item_id)}_psh-"


def output_collection_id(collection: str) -> str:
    """Output collection of a source collection."""
    return f"{collection}-sharpened"


def _by_acquisition(row: Standing) -> tuple[str, str]:
    return row.acquired, row.item_id


def recognise(ledger: Ledger, sink: StaticSink, settings: Settings) -> None:
    """Go on with what the ledger knows of the catalog from before it was moved or copied here."""
    from pancrafter.changes import ChangeFeed

    catalogs = ledger.catalogs()
    if settings.sink in catalogs:
        return
    for other in ledger.sinks():
        if other in catalogs and sink.store.exists(catalogs[other]):
            ledger.go_on(settings.sink, other)
    first = ChangeFeed(sink.store).first()
    if first is not None:
        ledger.know_catalog(settings.sink, first)


def enter_withdrawals(ledger: Ledger, sink: StaticSink, settings: Settings, linked: LinkedItems) -> None:
    """Refuse scenes whose product was withdrawn, as the catalog's own feed tells, where the ledger does not know of it.

    It was lost since, or is a copy from before, or knew the catalog at another place. What changed at the source since,
    or is published again, is no longer withdrawn.
    """
    from pancrafter.changes import OVERLAP, ChangeFeed

    withdrawals = ChangeFeed(sink.store).withdrawals()
    for name, row in ledger.rows_of(settings.sink, withdrawals).items():
        change = withdrawals[name]
        if row.state in IN_WORK | {State.REFUSED} or row.fingerprint != change.source["fingerprint"]:
            continue
        known = ledger.withdrawn_at(row.key)
        if known is not None and known >= change.time - OVERLAP:
            continue
        items = (item_id for item_id, source in linked.get(change.collection, {}).items() if source == row.key.item_id)
        if not any(sink.is_current(change.collection, item_id) for item_id in items):
            with suppress(LeaseLostError):  # somebody began with it meanwhile
                ledger.mark_refused(row.key, WITHDRAWN, change.reason or "", withdrawn=True)


def linked_items(sink: StaticSink) -> LinkedItems:
    """What the catalog links to now."""
    return {name: sink.sources(name) for name in sink.collection_ids()}


def _match_with_outputs(
    ledger: Ledger, sink: StaticSink, settings: Settings, wanted: Iterable[tuple[str, str]]
) -> None:
    """Make again what vanished from the catalog, and confirm what is there although this ledger never made it.

    What vanished because it was withdrawn is not made again.
    """
    present = linked_items(sink)
    enter_withdrawals(ledger, sink, settings, present)
    lost, found = [], []
    for row in ledger.standing(settings.sink, wanted):
        key = row.key(settings.sink)
        collection = output_collection_id(row.collection)
        is_there = row.output_item_id in present.get(collection, {})
        if row.state is State.CONFIRMED and not is_there:
            lost.append(key)
        elif row.state is State.ELIGIBLE and is_there:
            found += [key] if sink.is_current(collection, row.output_item_id or "") else []
    if lost:
        ledger.redrive(lost, message="its output vanished from the catalog")
    if found:
        ledger.take_over(found)
