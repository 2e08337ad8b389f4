"""Clear up after workers that died: expired leases, and files that nobody works on and nothing refers to.

Only what belongs to scenes of this ledger is removed, and never what a living worker holds, so a sweep may run beside
any number of runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pancrafter.ledger import IN_WORK, Ledger, SceneKey, Standing, State
from pancrafter.processes import is_gone
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.steps import open_ledger, output_collection_id
from pancrafter.types import Record


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


def sweep(settings: Settings) -> Swept:
    """Free leases of dead workers, and remove what they left in the state folder and in the output catalog.

    Raises:
        LedgerError: The ledger cannot be used.
        SinkError: The sink cannot be read or written.
    """
    with open_ledger(settings) as ledger:
        taken_back = ledger.sweep(is_gone=is_gone)
        sink = StaticSink(settings.sink)
        removed = tuple(find_leftovers(settings, ledger, sink))
    for leftover in removed:
        if leftover.place == "sink":
            sink.store.delete(leftover.name)
        else:
            shutil.rmtree(Path(settings.state_dir) / leftover.place / leftover.name, ignore_errors=True)
    return Swept(freed=taken_back.freed, dead=taken_back.dead, removed=removed)


def find_leftovers(settings: Settings, ledger: Ledger, sink: StaticSink) -> Iterator[Leftover]:
    """What a sweep would remove now."""
    # Listed before the ledger is read: what a worker adds meanwhile is not on these lists.
    attempts, stores = _names(settings, "attempts"), _names(settings, "staged")
    collections = [output_collection_id(name) for name in ledger.collections(settings.sink)]
    orphans = [name for collection in collections for name in sink.orphans(collection)]
    drafts = sink.drafts()
    rows = {row.output_item_id: row for row in ledger.each(settings.sink) if row.output_item_id}
    for name in attempts:
        item_id, _, fence = name.rpartition(".")
        row = rows.get(item_id)
        if row is None or row.state not in IN_WORK or str(row.fence) != fence:
            yield Leftover(place="attempts", name=name, reason="attempt of a worker that is gone")
    for name in stores:
        reason = _why_not_needed(rows.get(name.removesuffix(".zarr")), settings)
        if reason:
            yield Leftover(place="staged", name=name, reason=reason)
    for name in orphans:
        row = rows.get(name.split("/")[1]) if name.count("/") == 2 else None
        if row is not None and row.state not in IN_WORK:
            yield Leftover(place="sink", name=name, reason="no item refers to it")
    for name, owner in drafts:
        if is_gone(owner):
            yield Leftover(place="sink", name=name, reason="half-written by a process that is gone")


def _why_not_needed(row: Standing | None, settings: Settings) -> str | None:
    """Why a staged store can go; None while somebody works on it or may go on with its finished blocks."""
    if row is None:
        return "no scene of the ledger is made from it"
    if row.state in IN_WORK | {State.ELIGIBLE, State.HELD} or (row.state is State.CONFIRMED and settings.keep_staged):
        return None
    return f"its scene is {row.state}"


def _names(settings: Settings, place: str) -> list[str]:
    folder = Path(settings.state_dir) / place
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
