"""The ledger: which scene is in which state, who works on it, and what happened to it before.

One database table holds the present of every scene, a second one its history. The ledger decides who may work and
publish; the orchestrator only asks. What the states mean for pixels and files is left to ``pancrafter.steps``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from pancrafter.errors import (
    AccessError,
    BandCountError,
    IllegalTransitionError,
    LeaseLostError,
    LedgerError,
    PancrafterError,
)
from pancrafter.finds import (
    COMPARED,
    change_message,
    columns_of,
    key_of,
    may_be_published_again,
    state_of,
    verdict_on_known,
)
from pancrafter.ledger_tables import (
    CATALOG,
    EVENT,
    LOOK,
    METADATA,
    SCENE,
    SCHEMA_VERSION,
    VERSION,
    Instant,
    open_engine,
    plain_json,
    tidy,
)
from pancrafter.states import (
    IN_WORK,
    WITHDRAWN,
    Event,
    FoundCounts,
    Lease,
    LedgerRow,
    Look,
    Order,
    Rate,
    RedriveResult,
    SceneKey,
    Standing,
    State,
    Stuck,
    SweepResult,
    Total,
    Waiting,
    Work,
    check_transition,
)
from pancrafter.types import Refusal

if TYPE_CHECKING:
    from pancrafter.settings import Settings

BATCH = 500
"""Items looked up and written per transaction: keeps memory flat, and stays below SQLite's limit on parameters."""

_T = TypeVar("_T")
_Values = dict[str, Any]  # one database row: the columns have all sorts of types

_ORDERS: Mapping[Order, tuple[sa.ColumnElement[Any], ...]] = {
    "newest": (SCENE.c.acquired.desc(), SCENE.c.id.desc()),
    "oldest": (SCENE.c.acquired.asc(), SCENE.c.id.asc()),
    "found": (SCENE.c.id.asc(),),
}

_PAGE = 5000
"""Rows per query when all of them are gone through."""

_FEW_SINKS = 20
"""So many are asked one by one: SQLite takes 500 selects in one statement, and gets slow before."""

_IN_VAIN = (AccessError.__name__, BandCountError.__name__)
"""What scenes wait for that are tried again and again while others can be made: their attempts do not count."""

_ON_ITS_WAY = timedelta(minutes=1)
"""How long an event with a lower id may appear after others: ids are given out before transactions end."""


def _columns(*names: str) -> tuple[sa.Column[Any], ...]:
    return tuple(SCENE.c[name] for name in ("id", "collection", "item_id", *names))


_COMPARED = _columns(*COMPARED)
_STANDING = _columns(
    "state", "output_item_id", "acquired", "supersedes", "code", "not_before", "lease_owner", "lease_expires", "fence"
)

_NO_LEASE: Mapping[str, None] = {"lease_owner": None, "lease_expires": None}
_NO_FAILURE: Mapping[str, Any] = {"code": None, "reason": None, "attempts": 0, "not_before": None}


class Ledger:
    """State of all scenes in one database, safe for many processes and machines at once.

    Args:
        url: SQLAlchemy URL, like ``sqlite:////data/ledger.db`` or ``postgresql+psycopg://user@host/db``. Tables are
            created when missing; the folder of a SQLite file too.
        max_attempts: After this many claims that ended in transient errors or silence, a scene is dead.
        backoff_s: Wait after the first transient failure; doubles with every further one.
        who: Name for events that no lease owner signs; host and process when left out.
        clock: Source of the present for tests. By default a database server's own clock, so that workers with wrong
            clocks cannot take each other's leases; with SQLite the clock of this machine.

    Raises:
        LedgerError: The database cannot be opened, or was written by a newer version of this package.
    """

    def __init__(
        self,
        url: str,
        *,
        max_attempts: int = 5,
        backoff_s: float = 60.0,
        who: str | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._max_attempts = max_attempts
        self._backoff_s = backoff_s
        self._who = who or f"{socket.gethostname()}:{os.getpid()}"
        self._clock = clock
        self._engine = open_engine(url)
        self._prepare_tables()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the ledger is, without the password, which may stand among the options of the address too."""
        return self._engine.url.set(query={}).render_as_string(hide_password=True)

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def use_one_name(self, sink: str) -> None:
        """Enter scenes of a folder under its real path that an earlier version knew by another path to it."""
        if "://" in sink or sink in self.catalogs():
            return
        with self._transaction() as connection:
            has_scenes = connection.execute(sa.select(SCENE.c.id).where(SCENE.c.sink == sink).limit(1)).first()
        others = [name for name in self.sinks() if "://" not in name and os.path.realpath(name) == sink != name]
        if others and not has_scenes:
            with self._transaction(write=True) as connection:
                for table in (SCENE, LOOK):
                    connection.execute(sa.update(table).where(table.c.sink == others[0]).values(sink=sink))
        for other in others[0 if has_scenes else 1 :]:
            self.go_on(sink, other)

    def sinks(self) -> list[str]:
        """All sinks, the one whose scenes changed last first."""
        statement = sa.select(SCENE.c.sink).group_by(SCENE.c.sink).order_by(sa.func.max(SCENE.c.updated).desc())
        with self._transaction() as connection:
            return list(connection.execute(statement).scalars())

    def catalogs(self) -> dict[str, str]:
        """Sink -> name of an event in its feed, for those that are known by one."""
        with self._transaction() as connection:
            return {row.sink: row.event for row in connection.execute(sa.select(CATALOG))}

    def know_catalog(self, sink: str, event: str) -> None:
        """Remember a sink by an event of its feed, if it is not known yet."""
        with self._transaction(write=True) as connection:
            connection.execute(_insert(connection, CATALOG).on_conflict_do_nothing(), {"sink": sink, "event": event})

    def go_on(self, sink: str, other: str) -> None:
        """Enter all that is known of another sink, whose catalog was moved or copied here, but for scenes in work.

        What is known of this one stays. The other one's scenes are not touched: it may still be in use.
        """
        copied = [column for column in SCENE.c if column.name not in {"id", "sink"}]
        here, there = SCENE.alias(), SCENE.alias()
        same = sa.and_(here.c.collection == there.c.collection, here.c.item_id == there.c.item_id)
        steps = [column for column in EVENT.c if column.name not in {"id", "scene_id"}]
        looks = [column for column in LOOK.c if column.name not in {"id", "sink"}]
        with self._transaction(write=True) as connection:
            scenes = sa.select(sa.literal(sink), *copied).where(SCENE.c.sink == other, SCENE.c.state.not_in(IN_WORK))
            insert = _insert(connection, SCENE).from_select(["sink", *(c.name for c in copied)], scenes)
            connection.execute(insert.on_conflict_do_nothing())
            history = (
                sa.select(here.c.id, *steps)
                .join(there, EVENT.c.scene_id == there.c.id)
                .join(here, same)
                .where(there.c.sink == other, here.c.sink == sink, here.c.id.not_in(sa.select(EVENT.c.scene_id)))
                .order_by(EVENT.c.id)
            )
            connection.execute(EVENT.insert().from_select(["scene_id", *(c.name for c in steps)], history))
            seen = sa.select(sa.literal(sink), *looks).where(LOOK.c.sink == other)
            connection.execute(LOOK.insert().from_select(["sink", *(c.name for c in looks)], seen))

    def now(self) -> datetime:
        """The present by the clock that leases are measured with: what is compared with the ledger's times."""
        with self._transaction() as connection:
            return self._now(connection)

    # discovery

    def record_found(self, sink: str, found: Iterable[Work | Refusal]) -> FoundCounts:
        """Enter what a discovery saw, and make eligible what is new or changed.

        A new fingerprint or recipe makes a finished (confirmed, held, dead) scene eligible again, as a superseding
        version. What was refused with the same fingerprint stays refused. A scene in work is left alone. Of others that
        are not finished, what the item says beside that (its bands, nodata, scale) is kept as it was seen last.
        ``found`` may be a generator over any number of items: it is taken in batches, each its own transaction.
        """
        total = FoundCounts()
        for batch in batches(found):
            total += self._record_batch(sink, {key_of(entry): entry for entry in batch})
        return total

    def _record_batch(self, sink: str, batch: Mapping[tuple[str, str], Work | Refusal]) -> FoundCounts:
        counts = dict.fromkeys(FoundCounts.model_fields, 0)
        counts["refused"] = sum(isinstance(entry, Refusal) for entry in batch.values())
        unfinished: dict[int, Any] = {}
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            known = _lookup(connection, sink, batch, _COMPARED, lock=True)
            # sorted: two processes entering the same items then wait for each other instead of locking each other out
            fresh = [batch[key] for key in sorted(batch.keys() - known.keys())]
            counts["new"] = self._insert_new(connection, sink, fresh, now)
            counts["known"] = len(fresh) - counts["new"]  # another process entered them in the meantime
            for key, row in known.items():
                verdict = verdict_on_known(row, batch[key])
                counts[verdict] += 1
                if verdict == "changed":
                    self._apply_change(connection, row, batch[key], now)
                elif isinstance(batch[key], Work) and State(row["state"]) in {State.ELIGIBLE, State.DEAD}:
                    unfinished[row["id"]] = columns_of(batch[key])["scene"]
            for row in self._select(connection, [SCENE.c.id.in_(unfinished)]) if unfinished else ():
                if row["scene"] != unfinished[row["id"]]:
                    self._update(connection, row, now, scene=unfinished[row["id"]])
        return FoundCounts(**counts)

    def _insert_new(self, connection: Connection, sink: str, entries: Sequence[Work | Refusal], now: datetime) -> int:
        if not entries:
            return 0
        values = [{**columns_of(entry), "sink": sink, "created": now, "updated": now} for entry in entries]
        insert = _insert(connection, SCENE).on_conflict_do_nothing()
        statement = insert.returning(SCENE.c.id, SCENE.c.state, SCENE.c.code, SCENE.c.reason)
        events = []
        for row in connection.execute(statement, values):
            message = f"{row.code}: {row.reason}" if row.code else "new"
            events.append(_event_values(row.id, now, self._who, State.FOUND, State(row.state), message))
        if events:
            connection.execute(EVENT.insert(), events)
        return len(events)

    def _apply_change(self, connection: Connection, row: _Values, entry: Work | Refusal, now: datetime) -> None:
        before, after = State(row["state"]), state_of(entry)
        values = {**_NO_FAILURE, **columns_of(entry), "measures": {}}
        visible = row["output_item_id"] if before is State.CONFIRMED else row["supersedes"]
        values["supersedes"] = None if visible == values["output_item_id"] else visible  # back to what is published
        measures = sa.select(SCENE.c.measures).where(SCENE.c.id == row["id"])
        if may_be_published_again(row, entry) and not connection.execute(measures).scalar_one():
            values["state"] = after = State.CONFIRMED
        if before is not after:
            check_transition(before, after, scene=f"{row['collection']}/{row['item_id']}")
        self._move(connection, row, now, change_message(row, entry), **values)

    def take_over(self, keys: Iterable[SceneKey]) -> int:
        """Confirm scenes whose product is in the catalog already, made under a ledger that was lost; returns how many.

        Only what nobody has begun (measures) or redriven since it was found, or found changed: others go on as they
        are.
        """
        taken = 0
        for batch in batches(keys):
            with self._transaction(write=True) as connection:
                now = self._now(connection)
                for key in batch:
                    row = self._find(connection, key)
                    if State(row["state"]) is State.ELIGIBLE and not row["measures"]:
                        said = "was published before this ledger knew it"
                        self._move(connection, row, now, said, state=State.CONFIRMED)
                        taken += 1
        return taken

    # work

    def claim(self, key: SceneKey, owner: str, lease_s: float, *, recipe: str) -> Lease | None:
        """Take an eligible scene for ``lease_s`` seconds, to make it by ``recipe``.

        None when somebody else was first, it is not eligible, or another discovery planned it with another recipe.
        """
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            statement = (
                sa.update(SCENE)
                .where(_is(key), _may_start(now), SCENE.c.recipe == recipe)
                .values(
                    state=State.CLAIMED,
                    lease_owner=owner,
                    lease_expires=now + timedelta(seconds=lease_s),
                    fence=SCENE.c.fence + 1,
                    attempts=SCENE.c.attempts + 1,
                    not_before=None,
                    updated=now,
                )
                .returning(SCENE.c.id, SCENE.c.fence, SCENE.c.attempts)
            )
            taken = connection.execute(statement).one_or_none()
            if taken is None:
                return None
            message = f"attempt {taken.attempts}, fence {taken.fence}, for {lease_s:g} s"
            event = _event_values(taken.id, now, owner, State.ELIGIBLE, State.CLAIMED, message)
            connection.execute(EVENT.insert(), event)
            return Lease(key=key, owner=owner, fence=taken.fence, lease_s=lease_s)

    def renew(self, lease: Lease) -> None:
        """Extend a lease, and prove by that that it still holds: call it before anything irreversible.

        Raises:
            LeaseLostError: The scene was taken back or somebody else has it.
        """
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            row = self._leased_row(connection, lease)
            self._update(connection, row, now, lease_expires=now + timedelta(seconds=lease.lease_s))

    def advance(self, lease: Lease, state: State | str, /, message: str = "", **measures: Any) -> None:
        """Move a leased scene forward and note what the step measured (seconds, bytes, pixels, references).

        ``measures`` must be JSON values (NaN and infinities become null); they are merged over the earlier ones.
        Reaching ``held`` or ``confirmed`` ends the lease. An expired lease that nobody took yet still counts.

        Raises:
            LeaseLostError: The scene was taken back or somebody else has it.
            IllegalTransitionError: ``state`` cannot follow the present one.
            LedgerError: A measure is no JSON value.
        """
        after = State(state)
        noted = plain_json(measures, scene=str(lease.key))
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            row = self._leased_row(connection, lease)
            before = State(row["state"])
            check_transition(before, after, scene=str(lease.key))
            if after not in IN_WORK | {State.HELD, State.CONFIRMED}:
                raise IllegalTransitionError(
                    f"advance cannot make a scene {after}; use fail or release", scene=str(lease.key)
                )
            values: _Values = {"state": after, "measures": {**row["measures"], **noted}}
            if after not in IN_WORK:
                values |= _NO_LEASE
            if after is State.HELD:
                values |= {"code": "held", "reason": tidy(message)}
            if after is State.CONFIRMED:
                values |= _NO_FAILURE
            self._move(connection, row, now, message, who=lease.owner, **values)

    def note(self, lease: Lease, **measures: Any) -> None:
        """Keep facts about a leased scene that must outlive this worker; the state stays.

        Raises:
            LeaseLostError: The scene was taken back or somebody else has it.
        """
        noted = plain_json(measures, scene=str(lease.key))
        with self._transaction(write=True) as connection:
            row = self._leased_row(connection, lease)
            self._update(connection, row, self._now(connection), measures={**row["measures"], **noted})

    def fail(self, lease: Lease, error: PancrafterError) -> State:
        """Give a scene back after an error, and say what became of it.

        Transient errors make it eligible again after a growing pause, and dead after ``max_attempts`` claims. Input
        errors make it dead at once. Errors of the set-up and the system are not the scene's fault: it is released, the
        attempt not counted. The former are kept for who looks why it waits; the latter end the run, which tells them.

        Raises:
            LeaseLostError: The scene is no longer this worker's.
        """
        code, reason = type(error).__name__, tidy(str(error))
        if error.kind in ("setup", "system"):
            told = {"code": code, "reason": reason} if error.kind == "setup" else {}
            return self._give_back(lease, f"{code}: {error}", **told)
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            row = self._leased_row(connection, lease)
            retry = error.kind == "transient" and row["attempts"] < self._max_attempts
            after = State.ELIGIBLE if retry else State.DEAD
            pause = self._backoff_s * 2.0 ** (row["attempts"] - 1)
            not_before = now + timedelta(seconds=pause) if retry else None
            values: _Values = {**_NO_LEASE, "state": after, "code": code, "reason": reason, "not_before": not_before}
            said = self._verdict(error, row, pause)
            self._move(connection, row, now, said, who=lease.owner, failure=f"{code}: {reason}", **values)
            return after

    def release(self, lease: Lease, reason: str) -> State:
        """Give a scene back untouched, as it was interrupted: eligible at once, the attempt not counted."""
        return self._give_back(lease, reason)

    def _give_back(self, lease: Lease, message: str, **told: str) -> State:
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            row = self._leased_row(connection, lease)
            values = {**_NO_LEASE, "state": State.ELIGIBLE, "attempts": row["attempts"] - 1, **told}
            self._move(connection, row, now, f"released: {tidy(message)}", who=lease.owner, **values)
            return State.ELIGIBLE

    def mark_refused(self, key: SceneKey, code: str, reason: str, *, withdrawn: bool = False) -> None:
        """Set a scene aside for good, by a person.

        It stays refused until its fingerprint changes or somebody redrives it. One that is published, or was refused
        for another reason before, is refused only by who takes its product back (``withdrawn``, with that code).

        Raises:
            LeaseLostError: Somebody works on the scene.
            IllegalTransitionError: The scene is already visible to readers.
            LedgerError: There is no such scene.
        """
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            row = self._find(connection, key)
            before = State(row["state"])
            if before in IN_WORK:
                raise LeaseLostError(f"{row['lease_owner']} is working on it; wait, or sweep first", scene=str(key))
            if not (withdrawn and before in {State.CONFIRMED, State.REFUSED}):
                check_transition(before, State.REFUSED, scene=str(key))
            text = tidy(reason)
            self._move(connection, row, now, f"{code}: {text}", state=State.REFUSED, code=code, reason=text)

    def withdrawn_at(self, key: SceneKey) -> datetime | None:
        """When a product of the scene was last taken back, as far as this ledger knows; None if never."""
        said = sa.and_(EVENT.c.to_state == State.REFUSED, EVENT.c.message.startswith(f"{WITHDRAWN}: "))
        statement = sa.select(sa.func.max(EVENT.c.at)).join(SCENE, EVENT.c.scene_id == SCENE.c.id).where(_is(key), said)
        with self._transaction() as connection:
            at: datetime | None = connection.execute(statement).scalar_one()
            return at

    def approve(self, key: SceneKey, reason: str) -> None:
        """A person lets a held scene through: eligible again, and ``measures["approved"]`` names item and reason.

        The approval counts for this output item only; a changed source or recipe clears it with all other measures.

        Raises:
            LedgerError: There is no such scene, or it is not held.
        """
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            row = self._find(connection, key)
            if State(row["state"]) is not State.HELD:
                raise IllegalTransitionError(f"is {row['state']}; only a held scene can be released", scene=str(key))
            text = tidy(reason)
            approved = {"output_item_id": row["output_item_id"], "by": self._who, "reason": text}
            measures = {**row["measures"], "approved": approved}
            values = {**_NO_FAILURE, "state": State.ELIGIBLE, "measures": measures}
            self._move(connection, row, now, f"released: {text}", **values)

    # repair

    def sweep(self, *, is_gone: Callable[[str], bool] = lambda _: False) -> SweepResult:
        """Take scenes back whose lease ran out or whose worker ``is_gone``; after ``max_attempts`` workers: dead.

        The fence grows, so a worker that was only slow cannot advance the scene any more. A scene that kills its
        worker every time (memory) is given up like this instead of stopping every run.
        """
        freed: list[SceneKey] = []
        dead: list[SceneKey] = []
        with self._transaction(write=True) as connection:
            now = self._now(connection)
            # SQLite would read all scenes to see which are not null
            leased = SCENE.c.lease_expires > datetime.min.replace(tzinfo=UTC)
            statement = sa.select(SCENE).where(leased, SCENE.c.state.in_(IN_WORK))
            for row in _fetch(connection, statement.with_for_update(skip_locked=True)):
                if row["lease_expires"] < now or is_gone(row["lease_owner"]):
                    (dead if self._take_back(connection, row, now) is State.DEAD else freed).append(_key(row))
        return SweepResult(freed=tuple(freed), dead=tuple(dead))

    def _take_back(self, connection: Connection, row: _Values, now: datetime) -> State:
        after = State.ELIGIBLE if row["attempts"] < self._max_attempts else State.DEAD
        values: _Values = {**_NO_LEASE, "state": after, "fence": row["fence"] + 1}
        expired = f"its lease ran out at {row['lease_expires']:%Y-%m-%dT%H:%M:%SZ}"
        lost = f"lost by {row['lease_owner']}: " + (expired if row["lease_expires"] < now else "the process is gone")
        if after is State.DEAD:
            values |= {
                "code": "LeaseExpired",
                "reason": f"{row['attempts']} attempts ended in silence or errors, the last as {row['state']}; "
                "look for a worker killed by the system (memory?), then redrive",
            }
        said = values.get("reason", "may be claimed again")
        self._move(connection, row, now, said, failure=lost, **values)
        return after

    def redrive(
        self,
        keys: Iterable[SceneKey] | None = None,
        *,
        sink: str | None = None,
        states: Iterable[State | str] = (State.DEAD, State.HELD),
        code: str | None = None,
        reason_contains: str | None = None,
        message: str = "redriven",
    ) -> RedriveResult:
        """Make scenes eligible again after a fix, with fresh attempts.

        Args:
            keys: These scenes, whatever rest state they are in; without it, all that match the rest.
            sink: Only scenes for this sink.
            states: Rest states to take (used without ``keys``).
            code: Only this refusal code or error class.
            reason_contains: Only where the reason contains this text (any case).
            message: Why, for the history.

        Returns:
            What was redriven, and which of the chosen scenes could not be: in work, or refused from metadata alone
            (nothing is known to sharpen; such an item comes back by itself when discovery recognises it).
        """
        chosen: list[sa.ColumnElement[bool]] = [SCENE.c.state.in_([State(s) for s in states])]
        if sink is not None:
            chosen.append(SCENE.c.sink == sink)
        if code is not None:
            chosen.append(SCENE.c.code == code)
        if reason_contains is not None:
            chosen.append(SCENE.c.reason.icontains(reason_contains, autoescape=True))
        redriven: list[SceneKey] = []
        left: list[tuple[SceneKey, str]] = []
        with self._transaction() as connection:
            if keys is None:
                ids = list(connection.execute(sa.select(SCENE.c.id).where(*chosen).order_by(SCENE.c.id)).scalars())
            else:
                found = (self._find(connection, key, lock=False) for key in keys)
                ids, chosen = list(dict.fromkeys(row["id"] for row in found)), []
        for batch in batches(ids):  # workers must not wait for all of them
            with self._transaction(write=True) as connection:
                now = self._now(connection)
                rows = {row["id"]: row for row in self._select(connection, [SCENE.c.id.in_(batch), *chosen])}
                for row in (rows[number] for number in batch if number in rows):
                    if obstacle := _redrive_obstacle(row):
                        left.append((_key(row), obstacle))
                        continue
                    values = {**_NO_FAILURE, "state": State.ELIGIBLE}
                    if State(row["state"]) is State.CONFIRMED:  # made anew: what it took before is paid
                        kept = {name: v for name, v in row["measures"].items() if not name.endswith("_seconds")}
                        values["measures"] = kept | {"redriven": message}
                    self._move(connection, row, now, message, **values)
                    redriven.append(_key(row))
        return RedriveResult(redriven=tuple(redriven), left=tuple(left))

    @contextmanager
    def unclaimable(self, key: SceneKey) -> Iterator[Standing]:
        """Where a scene stands. It stays there until the block ends, which must be short: others wait to write.

        Raises:
            LedgerError: There is no such scene.
        """
        with self._transaction(write=True) as connection:
            yield _standing(self._find(connection, key), self._now(connection))

    # reading

    def counts(self, sink: str | None = None) -> dict[State, int]:
        """How many scenes are in each state; states without scenes are there with 0."""
        statement = sa.select(SCENE.c.state, sa.func.count()).group_by(SCENE.c.state)
        if sink is not None:
            statement = statement.where(SCENE.c.sink == sink)
        with self._transaction() as connection:
            found = {State(state): int(count) for state, count in connection.execute(statement)}
        return {state: found.get(state, 0) for state in State}

    def rows(
        self,
        *,
        sink: str | None = None,
        states: Iterable[State | str] | None = None,
        sensor: str | None = None,
        collection: str | None = None,
        order: Order = "found",
        limit: int | None = None,
    ) -> list[LedgerRow]:
        """Scenes that match everything given."""
        chosen = [
            column == value
            for column, value in ((SCENE.c.sink, sink), (SCENE.c.sensor, sensor), (SCENE.c.collection, collection))
            if value is not None
        ]
        wanted = list(State) if states is None else [State(s) for s in states]
        if states is not None:
            chosen.append(SCENE.c.state.in_(wanted))
        by_time = limit is not None and order != "found"
        with self._transaction() as connection:
            # those of one state of one sink are in order of time, others are not
            if by_time and (sink is not None or sensor is collection is None):
                every = _each_value(connection, SCENE.c.sink)
                sinks = list(islice(every, _FEW_SINKS + 1)) if sink is None else [sink]
                parts = [[sa.and_(SCENE.c.sink == one, SCENE.c.state == state) for state in wanted] for one in sinks]
                ids = sa.select(SCENE.c.id).where(*chosen).order_by(*_ORDERS[order]).limit(limit)
                first = [_all_of([ids.where(part) for part in of_sink]) for of_sink in parts if of_sink]
                if len(sinks) <= _FEW_SINKS:
                    chosen = [SCENE.c.id.in_(_all_of(first))] if first else [sa.false()]
            statement = sa.select(SCENE).where(*chosen).order_by(*_ORDERS[order]).limit(limit)
            return [_row(values) for values in _fetch(connection, statement)]

    def show(self, key: SceneKey) -> LedgerRow | None:
        """The present of one scene; None when it was never found."""
        with self._transaction() as connection:
            rows = _fetch(connection, sa.select(SCENE).where(_is(key)))
            return _row(rows[0]) if rows else None

    def rows_of(self, sink: str, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], LedgerRow]:
        """Rows of these ``(collection, item_id)``; unknown ones are left out."""
        found: dict[tuple[str, str], LedgerRow] = {}
        for batch in batches(keys):
            with self._transaction() as connection:
                rows = _lookup(connection, sink, batch, tuple(SCENE.c))
            found |= {key: _row(values) for key, values in rows.items()}
        return found

    def standing(self, sink: str, keys: Iterable[tuple[str, str]]) -> Iterator[Standing]:
        """Where these ``(collection, item_id)`` stand; unknown ones are left out. Looked up in batches."""
        for batch in batches(keys):
            with self._transaction() as connection:
                now, rows = self._now(connection), _lookup(connection, sink, batch, _STANDING)
            yield from (_standing(row, now) for row in rows.values())

    def each(self, sink: str) -> Iterator[Standing]:
        """Where every scene of a sink stands, by its key, in batches: memory does not depend on how many there are.

        Keys never change: who is there when it begins is seen once, whatever happens to it meanwhile.
        """
        c, last = SCENE.c, ("", "")
        while True:
            after = sa.tuple_(c.collection, c.item_id) > last
            statement = sa.select(*_STANDING).where(c.sink == sink, after).order_by(c.collection, c.item_id)
            with self._transaction() as connection:
                now, rows = self._now(connection), _fetch(connection, statement.limit(_PAGE))
            yield from (_standing(row, now) for row in rows)
            if len(rows) < _PAGE:
                return
            last = (rows[-1]["collection"], rows[-1]["item_id"])

    def claimable(self, sink: str) -> list[tuple[str, str]]:
        """Collection and item id of what may be claimed now, by acquisition; what was tried in vain comes last."""
        c = SCENE.c
        with self._transaction() as connection:
            free = sa.select(c.collection, c.item_id).where(c.sink == sink, _may_start(self._now(connection)))
            order = (sa.func.coalesce(c.code, "").in_(_IN_VAIN), c.acquired, c.id)
            return [(row.collection, row.item_id) for row in connection.execute(free.order_by(*order))]

    def totals(self, sink: str) -> list[Total]:
        """Sums over everything that was confirmed, for monitoring."""
        measures, names = SCENE.c.measures, ("pixels", "bytes_read", "seconds", "sharpen_seconds")
        figures = sa.select(
            sa.func.coalesce(SCENE.c.sensor, "").label("sensor"),
            sa.func.coalesce(measures["device"].as_string(), "").label("device"),
            *(measures[name].as_float().label(name) for name in names),
        ).where(SCENE.c.sink == sink, SCENE.c.state == State.CONFIRMED)
        each = figures.cte().prefix_with("MATERIALIZED")  # otherwise SQLite sorts all measures to group them
        sums = [sa.func.coalesce(sa.func.sum(each.c[name]), 0.0) for name in names]
        groups = (each.c.sensor, each.c.device)
        statement = sa.select(*groups, sa.func.count(), *sums).group_by(*groups)
        with self._transaction() as connection:
            return [Total(*row) for row in connection.execute(statement)]

    def waiting(self, sink: str) -> list[Waiting]:
        """Everything that is not confirmed, by state and code, for monitoring."""
        code = sa.func.coalesce(SCENE.c.code, "")
        statement = (
            sa.select(SCENE.c.state, code, sa.func.count(), sa.type_coerce(sa.func.min(SCENE.c.updated), Instant))
            .where(SCENE.c.sink == sink, SCENE.c.state != State.CONFIRMED)
            .group_by(sa.literal_column("1"), sa.literal_column("2"))
        )
        with self._transaction() as connection:
            return [Waiting(State(row[0]), *row[1:]) for row in connection.execute(statement)]

    def stuck(self, sink: str, states: Iterable[State], *, since: datetime | None = None, limit: int) -> Stuck:
        """Scenes of these states for which there is a reason, changed since then; at most ``limit`` of their rows."""
        c = SCENE.c
        chosen = [c.sink == sink, c.state.in_(list(states)), c.reason != ""]
        if since is not None:
            chosen.append(c.updated >= since)
        listed = sa.select(SCENE).where(*chosen).order_by(*_ORDERS["newest"]).limit(limit)
        counted = sa.select(c.state, sa.func.count()).where(*chosen).group_by(c.state)
        with self._transaction() as connection:
            rows = tuple(_row(values) for values in _fetch(connection, listed))
            return Stuck(rows, {State(state): int(count) for state, count in connection.execute(counted)})

    def rates(self) -> list[Rate]:
        """What the scenes finished last took, for plans; into whichever sink they went."""
        statement = (
            sa.select(SCENE.c.sensor, SCENE.c.measures)
            .where(SCENE.c.state == State.CONFIRMED)
            .order_by(SCENE.c.updated.desc())
            .limit(200)
        )
        with self._transaction() as connection:
            rows = _fetch(connection, statement)
        needed = {"pixels", "bytes_read", "device", "seconds", "sharpen_seconds", "blocks", "computed_blocks"}
        return [
            Rate(row["sensor"], m["device"], m["pixels"], m["bytes_read"], m["seconds"], m["sharpen_seconds"])
            for row in rows
            if needed <= (m := row["measures"]).keys() and m["computed_blocks"] == m["blocks"]
        ]

    def note_look(self, sink: str, source: str, started: datetime, summary: str) -> None:
        """Remember that a source, or a named part of it, was looked through for what is new, and what came of it."""
        values = {"sink": sink, "source": tidy(source), "started": started, "summary": tidy(summary)}
        with self._transaction(write=True) as connection:
            connection.execute(LOOK.insert().values(**values, ended=self._now(connection)))

    def last_look(self, sink: str, source: str, *, or_part: bool = False) -> Look | None:
        """The last finished look; None if there was none.

        Those at parts of the source, whose names go on after a space, count too with ``or_part``.
        One that claims to be of the future was noted while the clock was wrong, and says nothing about what was seen.
        """
        named = LOOK.c.source == tidy(source)
        if or_part:
            named |= LOOK.c.source.startswith(f"{tidy(source)} ", autoescape=True)
        with self._transaction() as connection:
            past = LOOK.c.started <= self._now(connection)
            statement = sa.select(LOOK.c.started, LOOK.c.ended).where(LOOK.c.sink == sink, named, past)
            found = connection.execute(statement.order_by(LOOK.c.started.desc()).limit(1)).one_or_none()
            return None if found is None else Look(*found)

    def collections(self, sink: str) -> list[str]:
        """Source collections of which scenes were found for a sink."""
        with self._transaction() as connection:
            return sorted(collection for _, collection in _places(connection, sink))

    def find(self, item_id: str, *, sink: str | None = None) -> list[LedgerRow]:
        """Scenes whose item id is this, in any collection: what a person types."""
        with self._transaction() as connection:
            found = [
                values
                for of_sink, collection in _places(connection, sink)
                for values in _fetch(
                    connection,
                    sa.select(SCENE).where(_is(SceneKey(sink=of_sink, collection=collection, item_id=item_id))),
                )
            ]
        return [_row(values) for values in sorted(found, key=itemgetter("id"))]

    def why(self, key: SceneKey) -> list[Event]:
        """The history of one scene, oldest first; empty when it was never found."""
        c = EVENT.c
        told = sa.select(c.at, c.who, c.from_state.label("before"), c.to_state.label("after"), c.message)
        statement = told.join(SCENE, SCENE.c.id == c.scene_id).where(_is(key)).order_by(c.id)
        with self._transaction() as connection:
            return [Event(**values) for values in _fetch(connection, statement)]

    def last_event(self) -> int:
        """Id of the newest event: while it is the same, no scene has moved."""
        with self._transaction() as connection:
            return connection.scalar(sa.select(sa.func.max(EVENT.c.id))) or 0

    def confirmations(self, sink: str, after: int = 0) -> tuple[int, int]:
        """How often scenes of a sink were made and confirmed, and the id of the last event looked at.

        To go on counting, give that id as ``after``. What is younger than a minute is left for the next time.
        """
        c = EVENT.c
        # not a join: SQLite would begin with all scenes of the sink
        sink_of_event = sa.select(SCENE.c.sink).where(SCENE.c.id == c.scene_id).scalar_subquery()
        made = (c.from_state == State.PUBLISHED, c.to_state == State.CONFIRMED, sink_of_event == sink)
        with self._transaction() as connection:
            settled = sa.select(sa.func.max(c.id)).where(c.id > after, c.at <= self._now(connection) - _ON_ITS_WAY)
            last = connection.execute(settled).scalar_one() or after
            counted = sa.select(sa.func.count()).where(c.id > after, c.id <= last, *made)
            return connection.execute(counted).scalar_one(), last

    # inside

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Connection]:
        engine = self._engine.execution_options(ledger_write=write)
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as err:
            raise self._as_ledger_error(err) from err

    def _as_ledger_error(self, err: sa.exc.DBAPIError) -> LedgerError:
        return LedgerError(
            f"ledger {self.url}: {err.orig}; expected a database this process may read and write; "
            "check the address, the rights and the free space, and that the server runs"
        )

    def _prepare_tables(self) -> None:
        with self._transaction(write=True) as connection:
            if connection.dialect.name == "postgresql":  # two processes may open a fresh or an old database at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7262654)"))
            stamped = self._stamped_version(connection)
            if stamped is None:
                METADATA.create_all(connection)
                connection.execute(VERSION.insert().values(version=SCHEMA_VERSION, at=self._now(connection)))
            elif stamped < SCHEMA_VERSION:
                from pancrafter.migrations import upgrade

                upgrade(connection, stamped, SCHEMA_VERSION)
                connection.execute(VERSION.insert().values(version=SCHEMA_VERSION, at=self._now(connection)))
        if stamped is not None and stamped > SCHEMA_VERSION:
            self.close()
            raise LedgerError(
                f"ledger {self.url}: tables have version {stamped}, this pancrafter knows versions up to "
                f"{SCHEMA_VERSION}; update pancrafter"
            )

    @staticmethod
    def _stamped_version(connection: Connection) -> int | None:
        if not sa.inspect(connection).has_table(VERSION.name):
            return None
        version: int | None = connection.execute(sa.select(sa.func.max(VERSION.c.version))).scalar_one()
        return version

    def _now(self, connection: Connection) -> datetime:
        if self._clock is not None:
            return self._clock()
        if connection.dialect.name == "postgresql":
            return connection.execute(sa.select(sa.type_coerce(sa.func.clock_timestamp(), Instant))).scalar_one()
        return datetime.now(UTC)

    def _select(
        self, connection: Connection, conditions: Sequence[sa.ColumnElement[bool]], *, lock: bool = True
    ) -> list[_Values]:
        statement = sa.select(SCENE).where(*conditions).order_by(SCENE.c.id)
        return _fetch(connection, statement.with_for_update() if lock else statement)

    def _find(self, connection: Connection, key: SceneKey, *, lock: bool = True) -> _Values:
        rows = self._select(connection, [_is(key)], lock=lock)
        if not rows:
            raise LedgerError(f"not in ledger {self.url} for sink {key.sink}; run a discovery first", scene=str(key))
        return rows[0]

    def _leased_row(self, connection: Connection, lease: Lease) -> _Values:
        row = self._find(connection, lease.key)
        if row["fence"] != lease.fence or row["lease_owner"] != lease.owner or State(row["state"]) not in IN_WORK:
            holder = f"{row['lease_owner']} holds it" if row["lease_owner"] else "nobody holds it"
            raise LeaseLostError(
                f"lease of {lease.owner} (fence {lease.fence}) is lost: now {row['state']}, fence {row['fence']}, "
                f"{holder}; drop this attempt's work",
                scene=str(lease.key),
            )
        return row

    def _verdict(self, error: PancrafterError, row: _Values, pause_s: float) -> str:
        if error.kind == "input":
            return "input error: mend the source or the contract, then redrive"
        if row["attempts"] < self._max_attempts:
            return f"attempt {row['attempts']} of {self._max_attempts}; again in {pause_s:g} s"
        return f"attempt {row['attempts']} of {self._max_attempts}: given up; redrive when the cause is gone"

    @staticmethod
    def _update(connection: Connection, row: _Values, now: datetime, **values: Any) -> None:
        connection.execute(sa.update(SCENE).where(SCENE.c.id == row["id"]).values(updated=now, **values))

    def _move(
        self,
        connection: Connection,
        row: _Values,
        now: datetime,
        message: str,
        *,
        state: State,
        who: str | None = None,
        failure: str | None = None,
        **values: Any,
    ) -> None:
        """Give a scene its next state and further columns, and note the step; a ``failure`` is a step between."""
        self._update(connection, row, now, state=state, **values)
        before, who = State(row["state"]), who or self._who
        steps = [(before, state, message)]
        if failure is not None:
            steps = [(before, State.FAILED, failure), (State.FAILED, state, message)]
        connection.execute(EVENT.insert(), [_event_values(row["id"], now, who, *step) for step in steps])


def open_ledger(settings: Settings) -> Ledger:
    """The ledger that the settings name.

    Raises:
        LedgerError: The state folder cannot be made, or the ledger not be used.
    """
    if settings.ledger_url is None and "?" in settings.state_dir:
        raise LedgerError(
            f"state folder {settings.state_dir}: holds a question mark, where the name of the ledger's file would end; "
            "choose another folder, or set PANCRAFTER_LEDGER_URL"
        )
    try:
        Path(settings.state_dir).mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise LedgerError(
            f"state folder {settings.state_dir}: cannot be made ({err}); check its path and rights, or give another "
            "with --state-dir"
        ) from err
    ledger = Ledger(settings.ledger)
    ledger.use_one_name(settings.sink)
    return ledger


def _redrive_obstacle(row: _Values) -> str | None:
    state = State(row["state"])
    if state in IN_WORK:
        return f"{row['lease_owner']} is working on it; sweep frees it once its lease ran out"
    if state is State.ELIGIBLE and row["not_before"] is None and row["code"] not in _IN_VAIN:
        return "is eligible already"
    if row["scene"] is None:
        return "refused from its metadata; discovery brings it back when the item or the contract is mended"
    return None


def _lookup(
    connection: Connection,
    sink: str,
    keys: Iterable[tuple[str, str]],
    columns: Sequence[sa.Column[Any]],
    *,
    lock: bool = False,
) -> dict[tuple[str, str], _Values]:
    """Present rows of these ``(collection, item_id)``; with ``lock``, nobody else changes them in this transaction."""
    by_collection: dict[str, list[str]] = {}
    for collection, item_id in keys:
        by_collection.setdefault(collection, []).append(item_id)
    c = SCENE.c
    # the sink in every branch: otherwise SQLite goes through all scenes of the sink
    wanted = (
        sa.and_(c.sink == sink, c.collection == collection, c.item_id.in_(item_ids))
        for collection, item_ids in by_collection.items()
    )
    statement = sa.select(*columns).where(sa.or_(sa.false(), *wanted))
    if lock:
        # one statement in the same order everywhere: two discoveries cannot lock each other out
        statement = statement.order_by(c.id).with_for_update()
    return {(values["collection"], values["item_id"]): values for values in _fetch(connection, statement)}


def _places(connection: Connection, sink: str | None = None) -> Iterator[tuple[str, str]]:
    """Sinks, or one of them, with each of their collections."""
    for of_sink in _each_value(connection, SCENE.c.sink) if sink is None else [sink]:
        for collection in _each_value(connection, SCENE.c.collection, SCENE.c.sink == of_sink):
            yield of_sink, collection


def _each_value(connection: Connection, column: sa.Column[str], *chosen: sa.ColumnElement[bool]) -> Iterator[str]:
    """The values of a column, each by one look into its index: DISTINCT goes through all scenes."""
    last: str | None = ""
    while (last := connection.scalar(sa.select(sa.func.min(column)).where(column > last, *chosen))) is not None:
        yield last


def _all_of(selects: Sequence[sa.Select[Any]]) -> sa.Select[Any]:
    """What all of these find; SQLite takes no limit in a part of a union."""
    return sa.select(sa.union_all(*(sa.select(one.subquery()) for one in selects)).subquery())


def _insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """An insert that can leave out what is there already."""
    return (postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert)(table)


def _fetch(connection: Connection, statement: sa.Executable) -> list[_Values]:
    return [row._asdict() for row in connection.execute(statement)]


def _is(key: SceneKey) -> sa.ColumnElement[bool]:
    c = SCENE.c
    return sa.and_(c.sink == key.sink, c.collection == key.collection, c.item_id == key.item_id)


def _may_start(now: datetime) -> sa.ColumnElement[bool]:
    c = SCENE.c
    return sa.and_(c.state == State.ELIGIBLE, sa.or_(c.not_before.is_(None), c.not_before <= now))


def _key(row: _Values) -> SceneKey:
    return SceneKey(sink=row["sink"], collection=row["collection"], item_id=row["item_id"])


def _row(values: _Values) -> LedgerRow:
    fields = {name: values[name] for name in LedgerRow.model_fields if name != "key"}
    return LedgerRow(key=_key(values), **fields)


def _standing(row: _Values, now: datetime) -> Standing:
    names = ("collection", "item_id", "output_item_id", "supersedes", "lease_owner", "lease_expires", "fence")
    return Standing(
        **{name: row[name] for name in names},
        state=State(row["state"]),
        acquired=row["acquired"] or "",
        claimable=row["state"] == State.ELIGIBLE and (row["not_before"] or now) <= now,
        in_vain=row["code"] in _IN_VAIN,
    )


def _event_values(scene_id: int, at: datetime, who: str, before: State, after: State, message: str) -> _Values:
    return {
        "scene_id": scene_id,
        "at": at,
        "who": who,
        "from_state": before,
        "to_state": after,
        "message": tidy(message),
    }


def batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    """The same in lists of at most ``BATCH``."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
