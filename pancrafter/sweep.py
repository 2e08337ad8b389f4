"""Clear up after workers that died: expired leases, and files that nobody works on and nothing refers to.

Only what belongs to scenes of this ledger and sink is removed, and never what a living worker holds, so a sweep may run
beside any number of runs:

- The fence of a scene grows with every claim. If it is at rest with the same fence before and after everything was
  listed, nobody worked on it in between, and what was read of its item is true.
- Right before something of a scene is removed this is looked at again, and the scene cannot be claimed until it is
  gone. A store is only renamed meanwhile, as that is quick.
- What lies in the sink for an item that the ledger does not plan may be another ledger's, which publishes it right now:
  it goes only if it was written long ago.
- An attempt's name holds its fence, so a scene never comes back to it; a store that is not of its scene's present item
  comes into use only if its recipe is put back, and found by a discovery.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pancrafter.catalog_links import item_name
from pancrafter.discovery import HASH_LENGTH, output_collection_id, output_item_stem
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.processes import SILENCE, is_gone
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.states import IN_WORK, LedgerRow, SceneKey, Standing, State
from pancrafter.steps import attempt_name, sink_mark, store_name
from pancrafter.types import Record

_MARKED = re.compile(r".+\.(?P<mark>[0-9a-f]{8})\.(zarr|\d+)")
"""Names that ``store_name`` and ``attempt_name`` make; earlier versions left the sink's mark out."""


class Leftover(Record):
    """Something that can go: a name inside ``place``."""

    place: Literal["attempts", "staged", "sink"]
    name: str
    reason: str


class Swept(Record):
    """What a sweep did."""

    freed: tuple[SceneKey, ...]
    dead: tuple[SceneKey, ...]
    removed: tuple[Leftover, ...]


class _Found(NamedTuple):
    leftover: Leftover
    scene: Standing | None = None
    """The scene that must not be claimed while the leftover is removed; None where no claim could make it needed."""


def sweep(settings: Settings) -> Swept:
    """Free leases of dead workers, and remove what they left in the state folder and in the output catalog.

    Raises:
        LedgerError: The ledger cannot be used.
        SinkError: The sink cannot be read or written.
    """
    with open_ledger(settings) as ledger:
        taken_back = ledger.sweep(is_gone=is_gone)
        sink = StaticSink(settings.sink)
        removed = tuple(
            found.leftover for found in list(_look(settings, ledger, sink)) if _remove(found, settings, ledger, sink)
        )
    return Swept(freed=taken_back.freed, dead=taken_back.dead, removed=removed)


def find_leftovers(settings: Settings, ledger: Ledger, sink: StaticSink) -> Iterator[Leftover]:
    """What a sweep would remove now."""
    return (found.leftover for found in _look(settings, ledger, sink))


def _look(settings: Settings, ledger: Ledger, sink: StaticSink) -> Iterator[_Found]:
    before: dict[int, int] = {}  # hashes: of very many scenes few have left something
    planned: set[str] = set()
    for scene in ledger.each(settings.sink):
        before[hash((scene.collection, scene.item_id))] = _mark(scene)
        planned.update(item_id for item_id in _planned(scene) if item_id)
    attempts, stores = _names(settings, "attempts"), _names(settings, "staged")
    collections = [output_collection_id(name) for name in ledger.collections(settings.sink)]
    orphans = [name for collection in collections for name in sink.orphans(collection, planned)]
    drafts = sink.drafts()
    named = {_item_of(name) for name in orphans} | {name.removesuffix(store_name("", settings.sink)) for name in stores}
    stems = {posixpath.dirname(name)[:-HASH_LENGTH] for name in orphans}
    scenes: dict[str, Standing] = {}
    at_rest: dict[str, Standing] = {}
    by_stem: dict[str, Standing] = {}
    for scene in ledger.each(settings.sink):
        rests = _rests(before.get(hash((scene.collection, scene.item_id))), scene)
        stem = f"{output_collection_id(scene.collection)}/{output_item_stem(scene.item_id)}"
        if rests and stem in stems:
            by_stem[stem] = scene
        if scene.output_item_id and (scene.output_item_id in named or scene.state in IN_WORK):
            scenes[scene.output_item_id] = scene
            if rests:
                at_rest[scene.output_item_id] = scene
    in_work = ledger.rows(states=IN_WORK)
    yield from _attempts(settings, attempts, scenes, in_work)
    yield from _stores(settings, stores, scenes, at_rest, in_work)
    for name in orphans:
        folder, item_id = posixpath.dirname(name), _item_of(name)
        owner = at_rest.get(item_id) if item_id in scenes else by_stem.get(folder[:-HASH_LENGTH])
        if owner is not None and not _may_be_of_others(name, owner, sink):
            yield _Found(Leftover(place="sink", name=name, reason="no item in the catalog refers to it"), owner)
    for name, process, changed in drafts:
        if is_gone(process, changed):
            yield _Found(Leftover(place="sink", name=name, reason="half-written by a process that is gone"))


def _attempts(
    settings: Settings, names: list[str], scenes: dict[str, Standing], in_work: list[LedgerRow]
) -> Iterator[_Found]:
    living = {
        attempt_name(item_id, settings.sink, scene.fence) for item_id, scene in scenes.items() if scene.state in IN_WORK
    }
    living |= {_old_name(f"{row.output_item_id}.{row.fence}") for row in in_work}
    for name in names:
        if name not in living and not _is_of_other_sink(name, settings):
            yield _Found(Leftover(place="attempts", name=name, reason="attempt of a worker that is gone"))


def _stores(
    settings: Settings,
    names: list[str],
    scenes: dict[str, Standing],
    at_rest: dict[str, Standing],
    in_work: list[LedgerRow],
) -> Iterator[_Found]:
    made_from = {store_name(item_id, settings.sink): item_id for item_id in scenes}
    living = {_old_name(f"{row.output_item_id}.zarr") for row in in_work}
    for name in names:
        if name in made_from:
            scene = at_rest.get(made_from[name])
            if scene is not None and (reason := _why_not_needed(scene, settings)):
                yield _Found(Leftover(place="staged", name=name, reason=reason), scene)
        elif name not in living and not _is_of_other_sink(name, settings):
            reason = "no scene of the ledger is made from it"
            yield _Found(Leftover(place="staged", name=name, reason=reason))


def _why_not_needed(scene: Standing, settings: Settings) -> str | None:
    """Why the store of a scene at rest can go; None while somebody may go on with its finished blocks."""
    if scene.state in {State.ELIGIBLE, State.HELD} or (scene.state is State.CONFIRMED and settings.keep_staged):
        return None
    return f"its scene is {scene.state}"


def _remove(found: _Found, settings: Settings, ledger: Ledger, sink: StaticSink) -> bool:
    """Remove a leftover unless it came into use again; whether it is gone."""
    leftover, scene = found
    if scene is None:
        taken = _take_away(leftover, settings, sink)
    else:
        with ledger.unclaimable(scene.key(settings.sink)) as now:
            taken = (
                _rests(_mark(scene), now)
                and not _has_item(leftover, now, sink)
                and _take_away(leftover, settings, sink)
            )
    if taken and leftover.place != "sink":
        shutil.rmtree(_aside(leftover, settings), ignore_errors=True)
    return taken


def _take_away(leftover: Leftover, settings: Settings, sink: StaticSink) -> bool:
    if leftover.place == "sink":
        sink.store.delete(leftover.name)
        return True
    aside = _aside(leftover, settings)
    try:
        aside.with_name(leftover.name).rename(aside)
    except OSError:  # its worker, or another sweep, was faster
        return False
    return True


def _aside(leftover: Leftover, settings: Settings) -> Path:
    """Where a folder waits for being removed; the next sweep finds it there if this one dies."""
    return Path(settings.state_dir) / leftover.place / f"{leftover.name}.gone"


def _has_item(leftover: Leftover, scene: Standing, sink: StaticSink) -> bool:
    """Whether an item refers to a file of the sink by now, or may: a worker that lost its lease may be that late."""
    if leftover.place != "sink":
        return False
    if _may_be_of_others(leftover.name, scene, sink):
        return True
    collection, item_id, _ = leftover.name.split("/")
    counts = item_id in _planned(scene) or sink.exists(collection, item_id)
    return counts and leftover.name in {item_name(collection, item_id), *sink.files_of(collection, item_id)}


def _may_be_of_others(name: str, scene: Standing, sink: StaticSink) -> bool:
    """Whether a file of the sink is not of an item that the ledger has for its scene, and was written lately."""
    if _item_of(name) in _planned(scene):
        return False
    changed = sink.store.changed(name)
    return changed is None or datetime.now(UTC) - changed < SILENCE


def _rests(before: int | None, now: Standing) -> bool:
    """Whether nobody has worked on a scene since it had a mark, and nobody does."""
    return now.state not in IN_WORK and before == _mark(now)


def _mark(scene: Standing) -> int:
    """What is another one once somebody has worked on a scene."""
    return hash((scene.state, scene.fence, *_planned(scene)))


def _planned(scene: Standing) -> tuple[str | None, str | None]:
    """Ids of the items that the ledger has for a scene; they may not be linked yet."""
    return scene.output_item_id, scene.supersedes


def _item_of(name: str) -> str:
    """Id of the item in whose folder a file of the sink lies, '' if in none."""
    parts = name.split("/")
    return parts[1] if len(parts) == 3 else ""


def _names(settings: Settings, place: str) -> list[str]:
    return sorted(path.name for path in (Path(settings.state_dir) / place).glob("*") if path.is_dir())


def _old_name(name: str) -> str:
    """What lies in the folder for a store or attempt of an earlier version, which may still run, for any sink."""
    return name.partition("/")[0]


def _is_of_other_sink(name: str, settings: Settings) -> bool:
    marked = _MARKED.fullmatch(name)
    return marked is not None and marked["mark"] != sink_mark(settings.sink)
