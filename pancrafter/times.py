"""Moments as STAC writes them: RFC 3339, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC, which one that names no zone is in already.

    Raises:
        OverflowError: It lies outside the years 1 to 9999 there.
    """
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)


def rfc3339(moment: datetime) -> str:
    """A moment as text, with fractions of seconds only where it has some."""
    return in_utc(moment).isoformat().replace("+00:00", "Z")


def timestamp() -> str:
    """The present to the second."""
    return rfc3339(datetime.now(UTC).replace(microsecond=0))
