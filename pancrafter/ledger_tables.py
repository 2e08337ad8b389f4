"""The tables of the ledger, and connections to the database that holds them."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection, Dialect, Engine

from pancrafter.access import without_secrets
from pancrafter.errors import LedgerError
from pancrafter.types import Json

SCHEMA_VERSION = 4
"""Version of the tables below; each step from one to the next is a migration in ``pancrafter/migrations``."""

BUSY_TIMEOUT_S = 60
"""How long one process waits for another one's write to a SQLite ledger."""

PRIVATE = 0o600
"""Rights of a ledger file that is new; one that is there keeps its own."""

_LONGEST_REASON = 4000


class Instant(sa.types.TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no time zone, so it is taken off on the way in and put back on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """On the way in."""
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """On the way out."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
# SQLite gives automatic keys to INTEGER only; elsewhere a ledger of many years needs more than 32 bits.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

METADATA = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""All tables; the names of constraints are fixed so that migrations can address them."""

VERSION = sa.Table(
    "ledger_version",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", Instant, nullable=False),
)

SCENE = sa.Table(
    "scene",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("sink", sa.Text, nullable=False),
    sa.Column("collection", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("sensor", sa.Text),
    sa.Column("acquired", sa.Text),
    sa.Column("scene", _JSON),
    sa.Column("fingerprint", sa.Text),
    sa.Column("recipe", sa.Text),
    sa.Column("output_item_id", sa.Text),
    sa.Column("supersedes", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("not_before", Instant),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_expires", Instant),
    sa.Column("fence", sa.BigInteger, nullable=False, default=0),
    sa.Column("measures", _JSON, nullable=False, default=dict),
    sa.Column("created", Instant, nullable=False),
    sa.Column("updated", Instant, nullable=False),
    sa.UniqueConstraint("sink", "collection", "item_id"),
    sa.Index("ix_scene_state_acquired", "sink", "state", "acquired", "id"),
    sa.Index("ix_scene_lease_expires", "lease_expires"),
)

EVENT = sa.Table(
    "event",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("scene_id", _ID, sa.ForeignKey("scene.id"), nullable=False, index=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("from_state", sa.String(16)),
    sa.Column("to_state", sa.String(16), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)

LOOK = sa.Table(
    "look",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("sink", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("started", Instant, nullable=False),
    sa.Column("ended", Instant, nullable=False),
    sa.Column("summary", sa.Text, nullable=False),
    sa.Index("ix_look_started", "sink", "source", "started"),
)
"""Finished looks at a source for what is new, so that a missed night becomes part of the next window."""

CATALOG = sa.Table(
    "catalog",
    METADATA,
    sa.Column("sink", sa.Text, primary_key=True),
    sa.Column("event", sa.Text, nullable=False),
)
"""Name of an event in the feed of each sink: a catalog is known by it where it was moved or copied to."""


_ACCOUNT = re.compile(r"^(?!sqlite)([\w+.-]*:)?.*@")
"""What may hold a password in an address that need not make sense; files of SQLite may have an @ in their path."""


def open_engine(url: str) -> Engine:
    """Connections to a ledger's database; a SQLite file and its folder are created, the file for its owner alone.

    Raises:
        LedgerError: The address makes no sense, its driver is missing, or it is of another kind of database.
    """
    try:
        parsed = _parsed(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
            file = Path(parsed.database)
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # what SQLite says then is told with advice
                if not file.exists():  # hrefs may hold keys; SQLite gives what it keeps beside the file the same rights
                    file.touch(mode=PRIVATE)
        # A plan that PostgreSQL kept from when the ledger was small reads the whole table when it is large.
        arguments = {"prepare_threshold": None} if parsed.get_driver_name() == "psycopg" else {}
        remote = parsed.get_backend_name() != "sqlite"
        engine = sa.create_engine(parsed, pool_pre_ping=remote, connect_args=arguments)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError, OSError) as err:
        shown = tidy(_ACCOUNT.sub(r"\1//", url))
        raise LedgerError(
            f"ledger: cannot open {shown}: {err}; expected like sqlite:////folder/ledger.db or "
            "postgresql+psycopg://user@host/database, which needs pip install 'pancrafter[server]'"
        ) from err
    if engine.dialect.name not in {"sqlite", "postgresql"}:
        raise LedgerError(f"ledger: {engine.dialect.name} is not supported; use SQLite or PostgreSQL")
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def holds_password(url: str) -> bool:
    """Whether a ledger's address holds a password, however ``open_engine`` finds it there, or may be meant to."""
    try:
        parsed = _parsed(url)
    except sa.exc.ArgumentError:  # which opening it says
        return re.search(":(?!//)[^@]*@", url) is not None
    return bool(parsed.password) or not {"password", "sslpassword"}.isdisjoint(parsed.query)


def _parsed(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except ValueError:  # whose text quotes what may be a part of a password
        raise sa.exc.ArgumentError("its port is no number") from None


def _set_up_sqlite(dbapi_connection: Any, _record: object) -> None:  # Any: the driver's own connection type
    """Readers do not wait for writers (WAL), writers queue; the driver starts no transactions on its own."""
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # a claim or a publication must survive a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:  # Any: the driver's own cursor type
    """SQLite does not apply its busy time-out to this switch: processes opening a fresh file at once must try again."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as err:
            if err.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that will write takes the write lock first: upgrading a read lock later could fail at once."""
    write = connection.get_execution_options().get("ledger_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def tidy(text: str) -> str:
    """Bounded text without passwords or signatures, as a database takes it."""
    return without_secrets(text).replace("\0", "")[:_LONGEST_REASON]


def plain_json(values: Json, *, scene: str) -> Json:
    """The same values as JSON keeps them; PostgreSQL takes neither NaN nor NUL characters."""
    try:
        text = json.dumps(_finite(values), allow_nan=False)
    except (TypeError, ValueError) as err:
        raise LedgerError(f"{err}; expected plain JSON values (convert arrays and paths first)", scene=scene) from err
    plain: Json = json.loads(text.replace("\\u0000", ""))
    return plain


def _finite(value: Any) -> Any:  # Any: whatever JSON nests
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
