"""Compare source, ledger, files and output catalog both ways, and name the command that mends each difference.

Discovery looks at a window; a census looks at everything. Scenes that wait for a person (dead, held) are accounted for
and counted, not differences: the ledger says why nothing was published.
"""

from __future__ import annotations

import posixpath
import shlex
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Literal

from pydantic import Field

from pancrafter.catalog_links import SOURCE_FIELD
from pancrafter.discovery import look, output_collection_id, work_of
from pancrafter.finds import compared, verdict_on_known
from pancrafter.ledger import Ledger, batches, open_ledger
from pancrafter.processes import is_gone
from pancrafter.publish import StaticSink
from pancrafter.sensors import contracts_of
from pancrafter.settings import Settings
from pancrafter.states import IN_WORK, WITHDRAWN, LedgerRow, SceneKey, Standing, State, Work
from pancrafter.sweep import find_leftovers
from pancrafter.types import Json, Record, Refusal, Scene

Place = Literal["source", "ledger", "catalog", "files"]

_WINDOW = ("since", "until", "changed_since", "new_since", "bbox", "aoi", "collections", "ids")
"""Settings that limit the look at the source."""

_RUN_OPTIONS = {
    "contracts_dir": "--contracts-dir",
    "weights": "--weights",
    "precision": "--precision",
    "since": "--from",
    "until": "--to",
    "bbox": "--bbox",
    "aoi": "--aoi",
}
"""Settings beside the places that decide what a run does, and their options."""


_READERS = 8
_GONE = "published, but gone from the source meanwhile"


class Difference(Record):
    """One thing on which two of the places disagree."""

    place: Place = Field(description="Where it was noticed.")
    what: str = Field(description="Scene, item or file.")
    finding: str
    fix: str = Field(description="Command that mends it.")


class Census(Record):
    """The counts of each place, and where they differ."""

    source: str
    sink: str
    whole_source: bool = Field(description="False if the settings name a window: what left the source is not known.")
    source_scenes: int
    source_refused: int
    ledger: dict[str, int] = Field(description="State -> scenes.")
    catalog_items: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = Field(description="What is no difference, but worth knowing.")

    @property
    def clean(self) -> bool:
        """Nothing differs."""
        return not self.differences


def take_census(settings: Settings, *, checksums: bool = False) -> Census:
    """Compare everything with everything.

    Args:
        settings: Source, sink and ledger. A window (period, area, collections, ids) limits the look at the source.
        checksums: Read every published file and compare its checksum; otherwise sizes are compared.

    Raises:
        SourceError: The source cannot be searched.
        SinkError: The output catalog cannot be read.
        LedgerError: The ledger cannot be read.
    """
    with open_ledger(settings) as ledger:
        return _Comparison(settings, ledger, checksums=checksums).result()


class _Comparison:
    """Collects differences while it goes through source, ledger, catalog and files, in this order."""

    def __init__(self, settings: Settings, ledger: Ledger, *, checksums: bool) -> None:
        self.settings = settings
        self.ledger = ledger
        self.checksums = checksums
        self.sink = StaticSink(settings.sink)
        self.unlimited = settings.model_copy(update={name: Settings.model_fields[name].default for name in _WINDOW})
        self.whole = settings == self.unlimited
        self.differences: list[Difference] = []
        self.notes: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.in_source: set[tuple[str, str]] = set()
        self.linked = {name: frozenset(self.sink.item_ids(name)) for name in self.sink.collection_ids()}
        self.known_outputs: set[tuple[str, str]] = set()

    def result(self) -> Census:
        self._source()
        self._ledger()
        self._catalog()
        for leftover in find_leftovers(self.settings, self.ledger, self.sink):
            self._add("files", f"{leftover.place}/{leftover.name}", leftover.reason, "sweep")
        counts = self.ledger.counts(self.settings.sink)
        return Census(
            source=self.settings.source,
            sink=self.settings.sink,
            whole_source=self.whole,
            source_scenes=self.counted["scenes"],
            source_refused=self.counted["refused"],
            ledger={state.value: count for state, count in counts.items() if count},
            catalog_items=sum(map(len, self.linked.values())),
            differences=tuple(self.differences),
            notes=tuple(f"{count} {text}" for text, count in sorted(self.notes.items())),
        )

    def _add(self, place: Place, what: str, finding: str, *fixes: str, seen: bool = False) -> None:
        """Note a difference; to mend what was not seen in the source takes a run that looks beyond the window."""
        fix = " && ".join(command(fix, self.settings if seen else self.unlimited) for fix in fixes)
        self.differences.append(Difference(place=place, what=what, finding=finding, fix=fix))

    # --- source -> ledger

    def _source(self) -> None:
        contracts = contracts_of(self.settings)
        for batch in batches(look(self.settings, contracts)):
            keys = [(entry.collection, entry.item_id) for entry in batch]
            self.in_source.update(keys)
            rows = self.ledger.rows_of(self.settings.sink, keys)
            for entry in batch:
                self.counted["refused" if isinstance(entry, Refusal) else "scenes"] += 1
                found = work_of(entry, self.settings, contracts) if isinstance(entry, Scene) else entry
                self._source_item(found, rows.get((entry.collection, entry.item_id)))

    def _source_item(self, entry: Work | Refusal, row: LedgerRow | None) -> None:
        what = entry.scene.key if isinstance(entry, Work) else entry.key
        if row is None:
            self._add("source", what, "is not in the ledger", "run", seen=True)
            return
        if verdict_on_known(compared(row), entry) == "changed":
            changed = (
                "is not taken any more" if isinstance(entry, Refusal) else "changed, or would be made differently now"
            )
            self._add("source", what, changed, "run", seen=True)

    # --- ledger -> source, catalog, files

    def _ledger(self) -> None:
        sizes = {name: size for one in self.linked for name, size in self.sink.store.sizes(one).items()}
        fault_of = partial(self._fault_of, sizes=sizes)
        with ThreadPoolExecutor(_READERS) as pool:
            for rows in batches(self.ledger.each(self.settings.sink)):
                self._ledger_rows(rows, list(pool.map(fault_of, rows)))

    def _ledger_rows(self, rows: list[Standing], faults: list[str | None]) -> None:
        now = self.ledger.now()  # not this machine's: its clock may be wrong
        for row, fault in zip(rows, faults, strict=True):
            key = row.key(self.settings.sink)
            if row.output_item_id:
                self.known_outputs.add((output_collection_id(row.collection), row.output_item_id))
            if row.supersedes:
                self.known_outputs.add((output_collection_id(row.collection), row.supersedes))
            if row.state in IN_WORK:
                self._in_work(key, row, now)
            elif row.state is State.ELIGIBLE:
                self._waiting(key, row)
            elif row.state is State.CONFIRMED:
                self._confirmed(key, row, fault)
            elif row.state is State.REFUSED:
                self._refused(key, row)
            elif row.state in (State.DEAD, State.HELD):
                self.notes[f"{row.state}, wait for a person: pancrafter ledger list --state {row.state}"] += 1

    def _in_work(self, key: SceneKey, row: Standing, now: datetime) -> None:
        if row.lease_owner is None or row.lease_expires is None or row.lease_expires < now or is_gone(row.lease_owner):
            finding = f"is {row.state}, but its worker {row.lease_owner} is gone"
            self._add("ledger", str(key), finding, "sweep", "run", seen=self._seen(row))
        else:
            self.notes["in work now"] += 1

    def _waiting(self, key: SceneKey, row: Standing) -> None:
        if self.whole and not self._seen(row):
            refuse = f"ledger refuse {shlex.quote(str(key))} 'gone from the source'"
            self._add("ledger", str(key), "waits, but is gone from the source", refuse)
        else:
            pause = "" if row.claimable else ", after a pause"
            self._add("ledger", str(key), f"waits to be sharpened{pause}", "run", seen=self._seen(row))

    def _confirmed(self, key: SceneKey, row: Standing, fault: str | None) -> None:
        collection = output_collection_id(row.collection)
        assert row.output_item_id is not None
        seen, redrive = self._seen(row), f"redrive {shlex.quote(str(key))}"
        if self.whole and not seen:
            self.notes[_GONE] += 1
        if row.output_item_id not in self.linked.get(collection, frozenset()):
            finding = f"is confirmed, but {row.output_item_id} is not in the catalog"
            self._add("ledger", str(key), finding, "run" if seen else redrive, seen=seen)
            return
        if fault:
            self._add("files", str(key), fault, redrive, "run", seen=seen)

    def _seen(self, row: Standing) -> bool:
        return (row.collection, row.item_id) in self.in_source

    def _refused(self, key: SceneKey, row: Standing) -> None:
        """An older version stays where a newer one was refused; what was withdrawn goes with all its versions."""
        collection = output_collection_id(row.collection)
        linked = self.linked.get(collection, frozenset())
        ids = [name for name in (row.output_item_id, row.supersedes) if name is not None and name in linked]
        published = [name for name in ids if self.sink.is_current(collection, name)]
        known = self.ledger.show(key) if published else None
        if known is None or (published == [row.supersedes] and known.code != WITHDRAWN):
            return
        withdraw = f"withdraw {shlex.quote(str(key))} --reason {shlex.quote(known.reason or '')}"
        self._add("catalog", str(key), f"is refused ({known.code}), but {published[0]} is in the catalog", withdraw)

    def _fault_of(self, row: Standing, sizes: Mapping[str, int]) -> str | None:
        """What is wrong with the files of a scene that is confirmed and linked."""
        collection, item_id = output_collection_id(row.collection), row.output_item_id
        if row.state is not State.CONFIRMED or item_id not in self.linked.get(collection, frozenset()):
            return None
        document = self.sink.document(collection, item_id)
        if document is None:
            return f"item {item_id} is linked, but its document is gone"
        for key, asset in document["assets"].items():
            name = posixpath.normpath(f"{collection}/{item_id}/{asset['href']}")
            size = sizes.get(name)
            if size != asset["file:size"]:  # or published since the listing
                size = self.sink.store.size(name)
            if size != asset["file:size"]:
                return f"asset {key} of {item_id} has {size} bytes, its item says {asset['file:size']}"
            if self.checksums and self.sink.store.multihash(name, asset["file:size"]) != asset["file:checksum"]:
                return f"asset {key} of {item_id} does not have the checksum that its item says"
        return None

    # --- catalog -> ledger

    def _catalog(self) -> None:
        for collection, items in self.linked.items():
            for item_id in items:
                if (collection, item_id) not in self.known_outputs:
                    self._unknown_item(collection, item_id)

    def _unknown_item(self, collection: str, item_id: str) -> None:
        document = self.sink.document(collection, item_id)
        if document is None:
            self._add("catalog", f"{collection}/{item_id}", "is linked, but there is neither document nor scene", "run")
        elif document["properties"].get("deprecated"):
            self.notes["older versions, kept and marked as deprecated"] += 1
        elif self.whole and _source_of(document) not in self.in_source:
            self.notes[_GONE] += 1
        elif (key := self._made_otherwise(collection, document)) is not None:
            finding = f"is current beside what was made of {key} since: the run that published it was interrupted"
            self._add("catalog", f"{collection}/{item_id}", finding, f"redrive {shlex.quote(str(key))}", "run")
        else:
            finding = "is in the catalog, but not in this ledger (another ledger, or a lost one: a run takes it over)"
            self._add("catalog", f"{collection}/{item_id}", finding, "run")

    def _made_otherwise(self, collection: str, document: Json) -> SceneKey | None:
        """The scene of an item, if another item of it is confirmed and in the catalog."""
        source, item_id = _source_of(document)
        row = self.ledger.show(SceneKey(sink=self.settings.sink, collection=source, item_id=item_id))
        if row is None or row.state is not State.CONFIRMED:
            return None
        return row.key if row.output_item_id in self.linked[collection] else None


def _source_of(product: Json) -> tuple[str, str]:
    source = product["properties"][SOURCE_FIELD]
    return source["collection"], source["item_id"]


def command(text: str, settings: Settings) -> str:
    """A ``pancrafter`` command with the options that make it work on the same places; a run also on the same scenes.

    The file of ids is not known any more: FILE stands for it.
    """
    default, word = Settings(), text.split(maxsplit=1)[0]
    chosen = {name: value for name, value in settings if value != getattr(default, name)}
    names = ("source", "sink", "state_dir") if word in {"run", "census"} else ("sink", "state_dir")
    options = [(f"--{name.replace('_', '-')}", chosen[name]) for name in names if name in chosen]
    if word == "run":
        options += [(option, _typed(chosen[name])) for name, option in _RUN_OPTIONS.items() if name in chosen]
        options += [("--collection", name) for name in settings.collections]
        options += [("--ids", "FILE")] if settings.ids else []
    return " ".join(["pancrafter", text, *(f"{option} {shlex.quote(value)}" for option, value in options)])


def _typed(value: str | datetime | tuple[float, ...]) -> str:
    """A setting as a person types it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str) else ",".join(map(repr, value))
