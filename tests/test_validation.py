"""The offline checks accept what the extensions' own examples do and refuse what breaks a field."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from pancrafter import validation
from pancrafter.errors import InvalidSceneError
from pancrafter.validation import validate_document, validate_item

EXTENSION = "https://stac-extensions.github.io/{}/schema.json"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("validation opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def item(**properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [
            EXTENSION.format(name) for name in ("projection/v2.0.0", "raster/v2.0.0", "eo/v2.0.0", "file/v2.1.0")
        ],
        "id": "one",
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]},
        "bbox": [0, 0, 1, 1],
        "properties": {"datetime": "2024-05-01T10:00:00Z", "proj:code": "EPSG:32633", **properties},
        "links": [],
        "assets": {
            "a": {
                "href": "./a.tif",
                "file:size": 12,
                "file:checksum": "1220" + "0a" * 32,
                "raster:scale": 0.1,
                "bands": [{"name": "red", "eo:common_name": "red", "eo:center_wavelength": 0.66}],
            }
        },
    }


def with_change(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(item())
    node: Any = changed
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return changed


def test_a_valid_item_passes() -> None:
    validate_item(item())


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("properties", "datetime"), "yesterday", r"\[core\] properties/datetime"),
        (("properties", "gsd"), -1, r"\[core\] properties/gsd"),
        (("geometry", "type"), "Square", r"\[core\]"),
        (("bbox",), [0, 0, 1], r"\[core\] bbox"),
        (("properties", "proj:code"), 32633, r"\[projection\] properties/proj:code"),
        (("properties", "proj:epsg"), 32633, r"\[projection\] properties.*proj:epsg"),
        (("properties", "proj:shape"), [10.5, 3], r"\[projection\] properties/proj:shape/0"),
        (("properties", "proj:transform"), [1, 0, 0], r"\[projection\] properties/proj:transform"),
        (("assets", "a", "proj:bbox"), [1, 2, 3, 4, 5], r"\[projection\] assets/a/proj:bbox"),
        (("assets", "a", "raster:scale"), "0.1", r"\[raster\] assets/a/raster:scale"),
        (("assets", "a", "raster:bands"), [], r"\[raster\] assets/a.*raster:bands"),
        (("assets", "a", "bands", 0, "eo:common_name"), "rouge", r"\[eo\] assets/a/bands/0/eo:common_name"),
        (("assets", "a", "eo:bands"), [], r"\[eo\] assets/a.*eo:bands"),
        (("assets", "a", "file:checksum"), "1220ABCD", r"\[file\] assets/a/file:checksum"),
        (("assets", "a", "file:size"), 1.5, r"\[file\] assets/a/file:size"),
        (("assets", "a", "href"), None, r"\[core\] assets/a/href"),
        (("properties", "processing:level"), "L2", r"uses processing:\* but does not declare .*processing/v1.2.0"),
        (("properties", "pancrafter:method"), "x", r"\[pancrafter\] properties"),
        (
            ("stac_extensions",),
            [EXTENSION.format("sar/v1.0.0")],
            "sar/v1.0.0/schema.json, for which there is no schema",
        ),
        (("stac_version",), "1.0.0", r"expected one of .* in STAC 1.1.0"),
        (("type",), "Collection", "expected 'Feature'"),
    ],
)
def test_each_defect_is_named(path: tuple[Any, ...], value: Any, found: str) -> None:
    with pytest.raises(InvalidSceneError, match=found):
        validate_item(with_change(path, value))


@pytest.mark.parametrize(
    ("extension", "good", "bad"),
    [
        ("processing/v1.2.0", {"processing:software": {"gdal": "3.10"}}, {"processing:software": {"gdal": 3}}),
        ("processing/v1.2.0", {"processing:datetime": "2024-01-01T00:00:00Z"}, {"processing:datetime": "2024-01-01"}),
        ("version/v1.2.0", {"version": "a1"}, {"version": 1}),
        ("version/v1.2.0", {"version": "1", "deprecated": True}, {"version": "1", "deprecated": "yes"}),
        ("view/v1.0.0", {"view:off_nadir": 12.5}, {"view:off_nadir": 120}),
        (
            "classification/v2.0.0",
            {"classification:bitfields": [{"offset": 0, "length": 1, "classes": [{"value": 0, "name": "ok"}]}]},
            {"classification:bitfields": [{"offset": 0, "length": 1, "classes": [{"value": 0, "name": "not ok"}]}]},
        ),
    ],
)
def test_further_extensions(extension: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    document = item(**good)
    document["stac_extensions"].append(EXTENSION.format(extension))
    validate_item(document)
    document["properties"] |= bad
    with pytest.raises(InvalidSceneError, match=rf"\[{extension.partition('/')[0]}\] properties/"):
        validate_item(document)


def test_only_items_of_models_declare_that_they_are() -> None:
    document = item()
    document["links"].append({"rel": "derived_from", "href": "./models/net.json", "mlm:name": "net"})
    validate_item(document)
    document["stac_extensions"].append(EXTENSION.format("mlm/v1.4.0"))
    with pytest.raises(InvalidSceneError, match=r"\[mlm\] properties: 'mlm:name' is a required property"):
        validate_item(document)
    with pytest.raises(InvalidSceneError, match=r"\[mlm\] assets"):
        validate_item(document)


def test_examples_of_the_extensions_pass(shared_data: Path) -> None:
    """Documents that the authors of the extensions published with them, less extensions we do not know."""
    folder, seen = shared_data / "stac" / "spec-examples-stac-1.1", set()
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        document["stac_extensions"] = [uri for uri in document["stac_extensions"] if uri in validation._extensions()]
        validate_document(document)
        seen |= {uri.split("/")[-3] for uri in document["stac_extensions"]}
    assert {"eo", "raster", "projection", "processing", "view"} <= seen


def test_unreachable_references_are_refused_not_fetched() -> None:
    with pytest.raises(Exception, match=r"no\.such"):
        validation._registry().get_or_retrieve("https://no.such/schema.json")
