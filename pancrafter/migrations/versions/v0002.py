"""``look``: when a source was looked through, so that missed nights become part of the next window."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "look",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("sink", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
    )
    op.create_index("ix_look_started", "look", ["sink", "source", "started"])
