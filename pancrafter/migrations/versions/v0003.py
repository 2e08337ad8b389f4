"""``catalog``: by what a sink is known where it was moved or copied to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "catalog",
        sa.Column("sink", sa.Text, primary_key=True),
        sa.Column("event", sa.Text, nullable=False),
    )
