"""Work through a part of the archive, window after window, newest first; what is done is skipped: repeat it freely."""

from __future__ import annotations

from collections.abc import Callable

from pancrafter.runs import RunStoppedError
from pancrafter.selection import windows_of
from pancrafter.settings import Settings
from pancrafter.steps import Outcome

WINDOW_DAYS = 30
"""Short enough that a window's discovery is quick and its results are seen soon."""


def backfill(settings: Settings, window_days: int, work: Callable[[Settings], list[Outcome]]) -> list[Outcome]:
    """Call ``work`` with the settings of one window after the other.

    Args:
        settings: The run; its limit counts for all windows together.
        window_days: Length of a window; without a beginning of the period there is one window.
        work: Discovers and sharpens everything in the period of its settings.

    Raises:
        RunStoppedError: Nothing else could work either; what was finished in all windows before is in it.
    """
    outcomes: list[Outcome] = []
    for since, until in windows_of(settings, window_days):
        tried = sum(not outcome.turned_away for outcome in outcomes)
        if settings.limit is not None and tried >= settings.limit:
            break
        limit = None if settings.limit is None else settings.limit - tried
        try:
            outcomes += work(settings.model_copy(update={"since": since, "until": until, "limit": limit}))
        except RunStoppedError as error:
            raise RunStoppedError(str(error), [*outcomes, *error.outcomes]) from error
    return outcomes
