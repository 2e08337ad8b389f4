"""The first tables: ``scene``, ``event`` and ``ledger_version``. Nothing to do: a ledger without them is made whole."""

from __future__ import annotations

revision = "1"
down_revision = None


def upgrade() -> None:
    """Start here."""
