"""Everything a run can be told, as one frozen value. Built once at the top; nothing below reads the environment."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from pancrafter.access import Access
from pancrafter.crawl import absolute, is_local, local_path
from pancrafter.model.names import DEFAULT_WEIGHTS
from pancrafter.types import Bbox, Record

Moment = Annotated[datetime, AfterValidator(lambda moment: moment if moment.tzinfo else moment.replace(tzinfo=UTC))]
"""A time without zone is UTC."""

_DATE_ONLY = re.compile(r"\d{4}-\d{2}-\d{2}")


def _end_of_date(given: Any) -> Any:  # Any: whatever a person gave
    day = date.fromisoformat(given) if isinstance(given, str) and _DATE_ONLY.fullmatch(given) else given
    return datetime.combine(day, time.max) if isinstance(day, date) and not isinstance(day, datetime) else given


LastMoment = Annotated[Moment, BeforeValidator(_end_of_date)]
"""The end of a period: a mere date means its last moment, as on the command line."""


def require_order(since: datetime | None, until: datetime | None) -> None:
    """Refuse a period that ends before it begins.

    Raises:
        ValueError: It does.
    """
    if since and until and since > until:
        raise ValueError(f"the period begins ({since}) after it ends ({until}); exchange the two")


PLACES = ("source", "sink", "state_dir")
"""Settings that name where a run works, and are never empty."""


class WorkSettings(Record):
    """How a run works, whatever part of the source it is about: from where to where, with what."""

    source: str = Field(default="archive", description="STAC API URL, static catalog URL, or folder of a catalog.")
    sink: str = Field(default="output", description="Folder or s3://bucket/prefix of the output catalog.")
    catalog_url: str | None = Field(
        default=None, description="STAC API with Transactions that is told of every item of the sink."
    )
    state_dir: str = Field(default="state", description="Folder of the ledger, staged scenes and unfinished files.")
    ledger_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL; default: SQLite in the state folder. A password in it makes it no parameter of a "
        "flow: set PANCRAFTER_LEDGER_URL where the worker runs.",
    )
    contracts_dir: str | None = Field(default=None, description="Folder with further sensor contracts.")
    access: Access = Field(
        default=Access(), description="Hosts and folders that may be read, and credentials for them."
    )
    weights: str = Field(default=DEFAULT_WEIGHTS, description="Shipped weights by name, or a checkpoint file.")
    device: str = Field(default="cpu", description="torch device of the workers, such as cpu or cuda.")
    precision: Literal["float32", "bfloat16"] = "float32"
    block_px: int = Field(default=512, ge=128, multiple_of=32, description="Edge of a block, PAN pixels.")
    workers: int = Field(default=2, ge=0, description="Local Dask workers; 0 works in this process.")
    threads: int = Field(default=1, ge=1, description="Threads per worker.")
    dask_scheduler: str | None = Field(default=None, description="tcp://host:port of a running Dask scheduler.")
    worker_wait_s: float = Field(
        default=600, gt=0, description="How long to wait while the Dask cluster has no fitting worker, seconds."
    )
    cog_profile: Literal["fast", "archive"] = "fast"
    lease_s: float = Field(default=900, gt=0, description="How long a silent worker keeps a scene, seconds.")
    priority: int = Field(default=0, description="Blocks of runs with a higher one go first on a shared Dask cluster.")
    limit: int | None = Field(default=None, ge=1, description="At most this many scenes.")
    price_per_hour: float = Field(default=0, ge=0, description="Price of this machine or cluster; 0: unknown.")
    keep_staged: bool = Field(default=False, description="Keep a scene's Zarr store after it is confirmed.")

    @model_validator(mode="before")
    @classmethod
    def _empty_place_is_not_given(cls, given: Any) -> Any:  # Any: a dictionary, or settings
        """As with the addresses below; an empty path would be the current folder."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name not in PLACES or value != ""}

    @field_validator("sink", "state_dir")
    @classmethod
    def _one_name_per_place(cls, place: str) -> str:
        """Folders by one path, without links and ``..``: the ledger knows a sink by its name."""
        return place.rstrip("/") if "://" in place else os.path.realpath(place)

    @field_validator("source", "sink", "catalog_url")
    @classmethod
    def _no_password(cls, place: str | None) -> str | None:
        """These addresses are written into logs, items and the ledger."""
        if place is not None and "://" in place and urlsplit(place).password:
            raise ValueError("holds a password; put it into ~/.netrc, the AWS files or PANCRAFTER_ACCESS instead")
        return place

    @field_validator("catalog_url", "ledger_url", "dask_scheduler", mode="before")
    @classmethod
    def _empty_is_not_set(cls, address: object) -> object:
        """Deployments fill these from environment variables that may be missing."""
        return None if address == "" else address

    @property
    def ledger(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger_url or f"sqlite:///{Path(self.state_dir) / 'ledger.db'}"

    @property
    def has_ledger(self) -> bool:
        """Whether there is a ledger already; one that has an address of its own counts as there."""
        return self.ledger_url is not None or (Path(self.state_dir) / "ledger.db").is_file()

    def money(self, seconds: float) -> float | None:
        """What work of some seconds costs; None where no price is known."""
        return seconds / 3600 * self.price_per_hour if self.price_per_hour else None

    @property
    def sink_is_source(self) -> bool:
        """Whether products would be published among the originals, where the next run would find them as its source."""
        if is_local(self.source):
            return self.sink in _catalog_folders(local_path(self.source))
        return self.source.rstrip("/").removesuffix("/catalog.json") == self.sink


def _catalog_folders(source: Path) -> set[str]:
    """Folders of a catalog's document and of the root that it links to."""
    place = source.resolve()
    names = [place] if place.suffix == ".json" else [place / "catalog.json", place / "collection.json"]
    document = next((name for name in names if name.is_file()), names[0])
    try:
        links = json.loads(document.read_text(encoding="utf-8"))["links"]
        roots = [absolute(link["href"], str(document)) for link in links if link["rel"] == "root"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # discovery says what is wrong with it
        roots = []
    return {str(Path(file).parent) for file in (str(document), *roots)}


class Settings(WorkSettings):
    """A run: what to sharpen, where to put it, with what. Every field can be set as ``PANCRAFTER_<FIELD>``."""

    since: Moment | None = Field(default=None, description="Earliest acquisition time.")
    until: LastMoment | None = Field(default=None, description="Latest acquisition time; a date means its end.")
    changed_since: Moment | None = Field(
        default=None, description="Only items updated (else created) since then; those that do not say are kept."
    )
    new_since: Moment | None = Field(
        default=None,
        description="Only items acquired, updated or created since then, and scenes that earlier runs left to do.",
    )
    bbox: Bbox | None = Field(default=None, description="West, south, east, north in degrees.")
    collections: tuple[str, ...] = Field(default=(), description="Source collections; empty: all.")
    aoi: str | None = Field(default=None, description="GeoJSON file; only scenes that intersect its geometries.")
    ids: tuple[str, ...] = Field(default=(), description="Source item ids; empty: all.")

    @model_validator(mode="after")
    def _in_order(self) -> Settings:
        require_order(self.since, self.until)
        return self


class _Environment(BaseSettings, Settings):
    """The same fields, filled from ``PANCRAFTER_*`` where they are not given."""

    model_config = SettingsConfigDict(env_prefix="PANCRAFTER_", frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Variables(settings_cls)


class _Variables(EnvSettingsSource):
    """Reads JSON without keys that stand twice, of which the last would count without a word."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        del field_name, field
        return json.loads(value, object_pairs_hook=_with_keys_once)


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"{twice!r} is given twice; keep one of them")
    return found


def settings_from_environment(**given: Any) -> Settings:  # Any: values of all fields
    """Settings from arguments first (None counts as not given), then from ``PANCRAFTER_*`` variables.

    Raises:
        pydantic.ValidationError: A value does not fit its field.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    return Settings.model_validate(_Environment(**chosen).model_dump())
