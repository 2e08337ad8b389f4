"""From parameters of flows to settings: what they leave out is the worker's; what they must not hold is refused.

Prefect keeps parameters in its database and shows them to everybody.
"""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from pancrafter.cli.shared import require_apart, settings_from
from pancrafter.errors import ErrorKind, PancrafterError
from pancrafter.settings import Settings, WorkSettings


class SecretParameterError(PancrafterError):
    """A parameter holds a password."""

    kind: ClassVar[ErrorKind] = "system"


def with_environment(parameters: WorkSettings) -> Settings:
    """The settings of a run: its parameters, and for what they leave out ``PANCRAFTER_*`` of the worker.

    As on the command line, None counts as left out.

    Raises:
        SecretParameterError: The ledger's address was given as a parameter, with a password.
        OptionError: A value in the environment does not fit, or source and sink are the same place.
    """
    if parameters.ledger_url is not None and urlsplit(parameters.ledger_url).password:
        raise SecretParameterError(
            "parameter ledger_url holds a password, which Prefect would show; leave it out, and set "
            "PANCRAFTER_LEDGER_URL where the worker runs"
        )
    settings = settings_from(**{name: getattr(parameters, name) for name in parameters.model_fields_set})
    require_apart(settings)
    return settings


def without_ledger(settings: Settings) -> Settings:
    """The settings as parameters may hold them, for runs in this process."""
    return settings.model_copy(update={"ledger_url": None})
