"""What a backfill is about: an area, a list of ids, or everything that was made with certain weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pancrafter.errors import PancrafterError
from pancrafter.model.names import model_name
from pancrafter.models import products_of
from pancrafter.publish import StaticSink
from pancrafter.settings import LastMoment, Moment, Settings, WorkSettings, require_order
from pancrafter.types import Bbox


class SelectionError(PancrafterError):
    """A file or a name that says what to work on is of no use."""

    kind = "system"


class Selection(BaseModel):
    """What a backfill is about; everything given must hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: Moment | None = Field(default=None, description="Earliest acquisition time.")
    until: LastMoment | None = Field(default=None, description="Latest acquisition time; a date means its end.")
    bbox: Bbox | None = Field(default=None, description="West, south, east, north in degrees.")
    aoi: str | None = Field(default=None, description="GeoJSON file with the area of interest.")
    collections: tuple[str, ...] = Field(default=(), description="Source collections; empty: all.")
    ids_file: str | None = Field(default=None, description="Text file with one source item id per line.")
    made_with: str | None = Field(
        default=None, description="Only scenes whose present result was made with these weights (name or sha256)."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Selection:
        require_order(self.since, self.until)
        return self

    def applied_to(self, settings: WorkSettings) -> Settings:
        """The settings of a run over this selection; what it leaves open stays as the settings have it.

        Raises:
            SelectionError: A file of the selection is of no use, nothing was made with the weights, or the period ends
                before that of the settings begins.
        """
        chosen = {
            name: value
            for name, value in self.model_dump(exclude={"ids_file", "made_with"}).items()
            if value not in (None, ())
        }
        ids = [set(read_ids(self.ids_file))] if self.ids_file else []
        ids += [set(made_by(settings.sink, self.made_with))] if self.made_with else []
        if ids:
            chosen["ids"] = tuple(sorted(set.intersection(*ids)))
        applied = Settings(**dict(settings)).model_copy(update=chosen)
        try:
            require_order(applied.since, applied.until)
        except ValueError as err:
            raise SelectionError(f"with what the settings say, {err}, or give both") from err
        return applied


@dataclass(frozen=True)
class Area:
    """Where scenes must lie, in degrees of longitude and latitude."""

    shape: Any  # Any: shapely ships no types
    bbox: Bbox

    @classmethod
    def from_file(cls, path: str) -> Area:
        """The union of all geometries of a GeoJSON file (geometry, feature or collection of them).

        Raises:
            SelectionError: It cannot be read, or is no GeoJSON with a geometry.
        """
        import shapely
        from shapely.geometry import shape

        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            merged = shapely.union_all([shape(geometry) for geometry in _geometries(document)])
        except OSError as err:
            raise SelectionError(f"area {path}: {err.strerror}; give a GeoJSON file") from err
        except (ValueError, TypeError, KeyError, AttributeError, shapely.errors.ShapelyError) as err:
            raise SelectionError(f"area {path}: found no GeoJSON geometry ({err}); expected degrees, WGS 84") from err
        if merged.is_empty:
            raise SelectionError(f"area {path}: has no geometry; expected at least one polygon")
        return cls(merged, tuple(merged.bounds))

    def meets(self, geometry: Mapping[str, Any]) -> bool:
        """Whether a GeoJSON geometry touches the area; one that is not valid does, as nothing is dropped unseen."""
        from shapely.errors import ShapelyError
        from shapely.geometry import shape

        try:
            return bool(self.shape.intersects(shape(geometry)))
        except (ShapelyError, ValueError, TypeError, KeyError, AttributeError):
            return True


def read_ids(path: str) -> tuple[str, ...]:
    """Item ids, one per line, with ``collection/`` in front or without; empty lines and comments (#) are left out.

    Ids may hold slashes themselves, so of a line with one both readings are returned.

    Raises:
        SelectionError: The file cannot be read or names nothing.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        raise SelectionError(f"ids {path}: {err}; give a text file with one item id per line") from err
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise SelectionError(f"ids {path}: names no item; expected one id per line")
    readings = ((line, line.partition("/")[2]) for line in named)
    return tuple(dict.fromkeys(reading for pair in readings for reading in pair if reading))


def made_by(sink: str, weights: str) -> tuple[str, ...]:
    """Ids of the source items whose current output was made with these weights, by name or by start of their sha256.

    Raises:
        SelectionError: Nothing in the output catalog was.
        SinkError: The output catalog cannot be read.
    """
    catalog = StaticSink(sink)
    products = list(products_of(catalog, model_name(weights)))
    if not products:
        made = {product.weights for product in products_of(catalog, deprecated=True)}
        found = ", ".join(sorted(made)) or "no product of a network"
        raise SelectionError(f"weights {weights}: nothing in {sink} was made with them; found {found}")
    return tuple(dict.fromkeys(product.source.partition("/")[2] for product in products))


def windows_of(settings: Settings, days: int) -> list[tuple[datetime | None, datetime | None]]:
    """The period of the settings in pieces; one piece where it has no beginning."""
    if settings.since is None:
        return [(None, settings.until)]
    until = settings.until or datetime.now(UTC)
    return list(windows(settings.since, until, days))


def windows(since: datetime, until: datetime, days: int) -> Iterator[tuple[datetime, datetime]]:
    """The period in pieces of some days, newest first: what people wait for comes first.

    Both ends belong to a piece, and neighbours share their border; a scene found twice is done once.
    """
    end = until
    while end > since:
        start = since if (end - since).days < days else end - timedelta(days=days)
        yield start, end
        end = start


def _geometries(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    kind = document["type"]
    if kind == "FeatureCollection":
        for feature in document["features"]:
            yield from _geometries(feature)
    elif kind == "Feature":
        if document["geometry"] is not None:
            yield document["geometry"]
    else:
        yield document
