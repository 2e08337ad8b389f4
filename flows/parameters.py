"""What parameters of flows must not hold: Prefect keeps them in its database and shows them to everybody."""

from __future__ import annotations

import os
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

from pancrafter.errors import ErrorKind, PancrafterError
from pancrafter.settings import Settings, WorkSettings

SettingsT = TypeVar("SettingsT", bound=WorkSettings)
LEDGER_VARIABLE = "PANCRAFTER_LEDGER_URL"


class SecretParameterError(PancrafterError):
    """A parameter holds a password."""

    kind: ClassVar[ErrorKind] = "system"


def with_ledger(settings: SettingsT) -> SettingsT:
    """The settings with the ledger's address, which may hold a password, from the environment of the worker.

    Raises:
        SecretParameterError: The address was given as a parameter, with a password.
    """
    if settings.ledger_url is None:
        return settings.model_copy(update={"ledger_url": os.environ.get(LEDGER_VARIABLE) or None})
    if urlsplit(settings.ledger_url).password:
        raise SecretParameterError(
            f"parameter ledger_url holds a password, which Prefect would show; leave it out, and set {LEDGER_VARIABLE} "
            "where the worker runs"
        )
    return settings


def without_ledger(settings: Settings) -> Settings:
    """The settings as parameters may hold them, for runs in this process."""
    return settings.model_copy(update={"ledger_url": None})
