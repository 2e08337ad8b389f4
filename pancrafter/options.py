"""Between person and command: what was typed becomes settings, faults are named as typed, and all can be printed."""

from __future__ import annotations

import difflib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pancrafter.errors import PancrafterError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from pancrafter.settings import Settings

_T = TypeVar("_T")

_OPTION_NAMES = {
    "since": "--from",
    "until": "--to",
    "collections": "--collection",
    "ids_file": "--ids",
    "interruptions_per_gpu_hour": "--interruptions",
}
_LISTS_AS_JSON = "lists are written as JSON, like '[8, 44, 9, 45]'"
_ACCESS_AS_JSON = """it is written as JSON, like '{"hosts": ["stac.example.com"]}'"""
_PREFIX = "PANCRAFTER_"
_NO_SETTINGS = re.compile(r"HOME|KILL_AT|FUZZ|FAULT_RUN|SHARED_SCENES|TEST_POSTGRES|.*(SERVICE_HOST|_?PORT)(_.*)?")
"""Variables that are no settings: of deployments, of tests, and those that Kubernetes makes of names of services."""
_DATE_ONLY = re.compile(r"\d{4}-?\d{2}-?\d{2}")


class OptionError(PancrafterError):
    """A value on the command line or in the environment does not fit."""

    kind = "system"


def settings_from(**given: Any) -> Settings:  # Any: values of all fields
    """Settings from options and environment; a value that does not fit is named as the user wrote it."""
    from pydantic_settings import SettingsError

    from pancrafter.settings import PLACES, Settings, settings_from_environment

    _warn_of_unknown(frozenset(os.environ), frozenset(Settings.model_fields))
    for name in PLACES:
        if given.get(name) == "":
            raise OptionError(
                f"{_option_name(name)}: found '', expected a folder or an address; leave it out or give one"
            )
    try:
        return validated(settings_from_environment, given)
    except SettingsError as err:
        hint = _ACCESS_AS_JSON if 'field "access"' in str(err) else _LISTS_AS_JSON
        raise OptionError(f"environment: {err} ({err.__cause__}); {hint}") from err


@functools.cache  # commands ask for settings several times
def _warn_of_unknown(variables: frozenset[str], fields: frozenset[str]) -> None:
    known = [field.upper() for field in fields]
    for variable in sorted(variables):
        name = variable.removeprefix(_PREFIX).upper()
        if not variable.startswith(_PREFIX) or name in known or _NO_SETTINGS.fullmatch(name):
            continue
        meant = "".join(f"; is {_PREFIX}{close} meant?" for close in difflib.get_close_matches(name, known, n=1))
        sys.stderr.write(f"warning: {variable} is no setting and counts for nothing{meant}\n")


def require_apart(settings: Settings) -> None:
    """Leave an archive as it is where it is named as the place for products too.

    Raises:
        OptionError: Source and sink are the same place.
    """
    if settings.sink_is_source:
        raise OptionError(
            f"--sink: found {settings.sink}, which is the source; expected another place for the products"
        )


def validated(build: Callable[..., _T], given: Mapping[str, Any]) -> _T:
    """What options make; a value that does not fit is named as the user wrote it."""
    from pydantic import ValidationError

    try:
        return build(**given)
    except ValidationError as err:
        raise OptionError("; ".join(_fault(fault, given) for fault in err.errors())) from err


def _fault(fault: ErrorDetails, given: Mapping[str, Any]) -> str:
    if not fault["loc"]:  # about several fields together, which the message names
        return fault["msg"].removeprefix("Value error, ")
    field = str(fault["loc"][0])
    from_environment = given.get(field) is None
    place = f"{_PREFIX}{field.upper()}" if from_environment else _option_name(field)
    place += "".join(f", {part}" for part in fault["loc"][1:])
    hint = f" ({_LISTS_AS_JSON})" if from_environment and fault["type"] == "tuple_type" else ""
    found = "a secret" if "password" in fault["msg"] else repr(fault["input"])
    return f"{place}: found {found}; {fault['msg'][:1].lower()}{fault['msg'][1:]}{hint}"


def _option_name(field: str) -> str:
    return _OPTION_NAMES.get(field, f"--{field.replace('_', '-')}")


def parse_moment(option: str, text: str | None, *, end_of_day: bool = False) -> datetime | None:
    """A time as ISO 8601 has it, in UTC if it names no zone; with ``end_of_day``, a mere date means its last moment."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    except ValueError as err:
        raise OptionError(f"{option}: found {text!r}, expected a date like 2025-04-01 or 2025-04-01T10:00Z") from err
    if end_of_day and _DATE_ONLY.fullmatch(text):
        return moment.replace(hour=23, minute=59, second=59, microsecond=999_999)
    return moment


def parse_bbox(text: str | None) -> tuple[float, ...] | None:
    """West, south, east, north as a person types them."""
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.replace(",", " ").split())
    except ValueError as err:
        raise OptionError(f"--bbox: found {text!r}, expected west,south,east,north in degrees") from err
    return (west, south, east, north)


def parse_size(option: str, text: str) -> int:
    """Bytes as a person types them: 800MB, 1.5GiB, 2G (binary), or a plain number."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)(i?b?)\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or number <= 0:
        raise OptionError(f"{option}: found {text!r}, expected a size like 2GiB or 800MB")
    base = 1000 if found[3].lower() == "b" else 1024
    return int(number * base ** " kmgt".index(found[2].lower() or " "))


def split_names(text: str | None) -> list[str] | None:
    """Names as a person types them, separated by commas; None when nothing was given."""
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def contracts_from(contracts_dir: str | None) -> dict[str, Any]:
    """Bundled sensor contracts and those of the folder in the option or the environment."""
    from pancrafter.sensors import contracts_of

    return dict(contracts_of(settings_from(contracts_dir=contracts_dir)))


def on_device(settings: Settings) -> Settings:
    """Settings with a device that exists here; what a Dask cluster elsewhere has is not known here."""
    if settings.device == "cpu":
        return settings
    if settings.dask_scheduler is not None:
        if settings.device == "auto":
            raise OptionError("--device auto: not with --dask-scheduler; name the device of its workers, cpu or cuda")
        return settings
    from pancrafter.model.devices import resolve_device

    return settings.model_copy(update={"device": resolve_device(settings.device)})


def print_all_characters() -> None:
    """Where stdout is not in Unicode, characters that it lacks become escapes, as they do on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")
