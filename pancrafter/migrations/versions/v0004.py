"""Scenes say what their items tell of nodata and scaling: a program that cannot read them must not try."""

from __future__ import annotations

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """The tables stay as they are; the new version is what older programs refuse."""
