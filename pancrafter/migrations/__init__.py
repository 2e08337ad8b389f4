"""How ledgers of older versions become ledgers of this one: Alembic scripts, run inside the caller's transaction.

A new step: change the tables in ``pancrafter.ledger_tables``, raise ``SCHEMA_VERSION``, and add ``versions/v000N.py``
with ``revision = "N"``. A test compares an upgraded ledger with a fresh one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def upgrade(connection: Connection, before: int, after: int) -> None:
    """Take the tables from one version to a later one; with an error nothing has changed.

    Which version a ledger has stands in its own table, so that programs of every age can read it.
    """
    config = Config()
    config.set_main_option("script_location", "pancrafter:migrations")
    scripts = ScriptDirectory.from_config(config)
    with Operations.context(MigrationContext.configure(connection)):
        for script in reversed(list(scripts.iterate_revisions(str(after), str(before)))):
            script.module.upgrade()
