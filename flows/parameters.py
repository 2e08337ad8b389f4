"""From parameters of flows to settings: what they leave out is the worker's; what they must not hold is refused.

Prefect keeps parameters in its database and shows them to everybody.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pancrafter.errors import PancrafterError
from pancrafter.ledger_tables import holds_password
from pancrafter.options import require_apart, settings_from
from pancrafter.settings import Settings, WorkSettings


class _NoDefaults:
    """The schema of a model with null as the default of every field.

    Prefect's form sends all defaults that the schema names, as if a person had given them.
    """

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        for field in handler.resolve_ref_schema(schema)["properties"].values():
            if field.pop("default") is not None:
                value = {key: field.pop(key) for key in field.keys() - {"title", "description"}}
                field["anyOf"] = [value, {"type": "null"}]
            field["default"] = None
        return schema


def _without_nulls(parameters: Any) -> Any:  # Any: a dictionary, or settings
    if not isinstance(parameters, dict):
        return parameters
    return {name: value for name, value in parameters.items() if value is not None}


SettingsParameter = Annotated[Settings, BeforeValidator(_without_nulls), _NoDefaults()]
WorkSettingsParameter = Annotated[WorkSettings, BeforeValidator(_without_nulls), _NoDefaults()]


class SecretParameterError(PancrafterError):
    """A parameter holds a password."""

    kind = "system"


def with_environment(parameters: WorkSettings) -> Settings:
    """The settings of a run: its parameters, and for what they leave out ``PANCRAFTER_*`` of the worker.

    As on the command line, None counts as left out.

    Raises:
        SecretParameterError: The ledger's address was given as a parameter, with a password.
        OptionError: A value in the environment does not fit, or source and sink are the same place.
    """
    if parameters.ledger_url is not None and holds_password(parameters.ledger_url):
        raise SecretParameterError(
            "parameter ledger_url holds a password, which Prefect would show; leave it out, and set "
            "PANCRAFTER_LEDGER_URL where the worker runs"
        )
    settings = settings_from(**{name: getattr(parameters, name) for name in parameters.model_fields_set})
    require_apart(settings)
    return settings
