"""Validates STAC documents against core 1.1.0 and every extension they declare, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource
from referencing.exceptions import NoSuchResource
from referencing.jsonschema import DRAFT7

from pancrafter.errors import InvalidSceneError
from pancrafter.types import Json

STAC_VERSION = "1.1.0"
OWN_SCHEMA = "pancrafter-v1.0.0.json"
_CORE_ROOT = f"https://schemas.stacspec.org/v{STAC_VERSION}/"
_CORE_OF_TYPE = {
    "Feature": f"{_CORE_ROOT}item-spec/json-schema/item.json",
    "Collection": f"{_CORE_ROOT}collection-spec/json-schema/collection.json",
    "Catalog": f"{_CORE_ROOT}catalog-spec/json-schema/catalog.json",
}
_MOST_SHOWN = 8


def validate_item(item: Json) -> None:
    """Check an item dictionary; see :func:`validate_document`. Its ``pancrafter:*`` properties are checked as well.

    Raises:
        InvalidSceneError: It is not a valid item; the message lists what is wrong where.
    """
    if item.get("type") != "Feature":
        raise InvalidSceneError(f"{_label(item)}: type is {item.get('type')!r}, expected 'Feature' (a STAC item)")
    validate_document(item)


def validate_document(document: Json) -> None:
    """Check an item, collection or catalog against STAC 1.1.0 and all extensions in ``stac_extensions``.

    Raises:
        InvalidSceneError: The document is not valid, declares an extension that cannot be checked here, or uses a
            field of an extension that it does not declare.
    """
    kind, version = document.get("type"), document.get("stac_version")
    if kind not in _CORE_OF_TYPE or version != STAC_VERSION:
        raise InvalidSceneError(
            f"{_label(document)}: type {kind!r}, stac_version {version!r}; expected one of {sorted(_CORE_OF_TYPE)} in "
            f"STAC {STAC_VERSION}"
        )
    declared = document.get("stac_extensions") or []
    unknown = sorted(set(declared) - set(_extensions()))
    if unknown:
        raise InvalidSceneError(
            f"{_label(document)}: declares {', '.join(unknown)}, for which there is no schema here; add it to "
            f"pancrafter/schemas or drop it (known: {', '.join(sorted(_extensions()))})"
        )
    problems = [*_schema_problems(document, declared), *_undeclared(document, declared)]
    if problems:
        listed = "; ".join(problems[:_MOST_SHOWN])
        more = f"; and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        raise InvalidSceneError(f"{_label(document)}: not valid STAC: {listed}{more}")


def own_schema_text() -> str:
    """The JSON schema of the ``pancrafter:*`` properties, as it is published beside the catalog."""
    return (resources.files("pancrafter") / "schemas" / OWN_SCHEMA).read_text(encoding="utf-8")


def _schema_problems(document: Json, declared: list[str]) -> Iterator[str]:
    schemas = [_CORE_OF_TYPE[document["type"]], *declared]
    if document["type"] == "Feature" and _uses(document, "pancrafter:"):
        schemas.append(OWN_SCHEMA)
    for address in schemas:
        name = {OWN_SCHEMA: "pancrafter", schemas[0]: "core"}.get(address) or address.split("/")[-3]
        for error in _validator(address).iter_errors(document):
            cause = _deepest(error)
            place = "/".join(str(part) for part in cause.absolute_path) or "document"
            yield f"[{name}] {place}: {cause.message[:300]}"


@cache
def _validator(address: str) -> Draft7Validator:
    """Of a core schema, an extension or our own, made once: resolving its references costs more than a check."""
    if address == OWN_SCHEMA:
        return Draft7Validator(json.loads(own_schema_text()), registry=_registry())
    return Draft7Validator(_extensions().get(address, {"$ref": address}), registry=_registry())


def _deepest(error: ValidationError) -> ValidationError:
    """The innermost cause of a failed combination of schemas, which is what a person can act on."""
    while error.context:
        error = max(error.context, key=lambda cause: (len(cause.absolute_path), -len(cause.message)))
    return error


def _undeclared(document: Json, declared: list[str]) -> Iterator[str]:
    """Fields with the prefix of a known extension, none of whose versions is declared.

    A link may say something of the document that it leads to.
    """
    own = {name: value for name, value in document.items() if name != "links"}
    names_of_prefix: dict[str, set[str]] = {}
    for uri, schema in _extensions().items():
        if "x-prefix" in schema:
            names_of_prefix.setdefault(schema["x-prefix"], set()).add(uri)
    for prefix, uris in names_of_prefix.items():
        if _uses(own, prefix) and not uris & set(declared):
            yield f"uses {prefix}* but does not declare {' or '.join(sorted(uris))}"


def _uses(node: Any, prefix: str) -> bool:  # Any: parsed JSON
    if isinstance(node, dict):
        return any(str(key).startswith(prefix) or _uses(value, prefix) for key, value in node.items())
    return isinstance(node, list) and any(_uses(value, prefix) for value in node)


def _label(document: Json) -> str:
    return f"{document.get('type') or 'document'} {document.get('id')!r}"


@cache
def _extensions() -> dict[str, Json]:
    folder = resources.files("pancrafter") / "schemas"
    parsed = [
        json.loads(entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name.endswith(".json")
    ]
    return {schema["x-extension"]: schema for schema in parsed if "x-extension" in schema}


@cache
def _registry() -> Registry[Any]:
    """Core and GeoJSON schemas from pystac under their own addresses; anything else is refused, never fetched."""
    found: list[tuple[str, Resource[Any]]] = []
    base = resources.files("pystac.validation.jsonschemas")
    for entry in (base / "stac-spec" / f"v{STAC_VERSION}").iterdir():
        name = entry.name.removesuffix(".json")
        folder = f"{name}-spec" if name in {"item", "catalog", "collection"} else "item-spec"
        found.append((f"{_CORE_ROOT}{folder}/json-schema/{entry.name}", _resource(entry.read_text(encoding="utf-8"))))
    geojson = (base / "geojson").iterdir()
    found += [(f"https://geojson.org/schema/{one.name}", _resource(one.read_text(encoding="utf-8"))) for one in geojson]
    return Registry(retrieve=_refuse).with_resources(found).crawl()  # type: ignore[call-arg]  # attrs alias, unknown to mypy


def _resource(text: str) -> Resource[Any]:
    return Resource.from_contents(json.loads(text), default_specification=DRAFT7)


def _refuse(uri: str) -> Resource[Any]:
    raise NoSuchResource(ref=uri)  # type: ignore[call-arg]  # attrs field, unknown to mypy
