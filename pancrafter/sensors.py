"""Sensor contracts: what one small YAML file says about a sensor, validated, and looked up by name or platform.

A contract is data. Nothing here knows a particular sensor; `recognise` applies the asset rules to items.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from pancrafter.errors import ContractError
from pancrafter.plain_yaml import parse_yaml
from pancrafter.quality import QualityRule
from pancrafter.types import Record, faults_of

if TYPE_CHECKING:
    from pancrafter.settings import Settings

GENERIC = "generic"
"""Name of the contract for files of an unknown sensor; no catalog item is ever recognised as it."""


@lru_cache(maxsize=65_536)
def fold(label: str) -> str:
    """A label without case, accents and punctuation: ``LANDSAT_8`` and ``Landsat 8`` both give ``landsat8``."""
    return re.sub(r"[^a-z0-9]+", "", unicodedata.normalize("NFKD", label).casefold())


class BandSpec(Record):
    """One MS band. Wavelengths are None only where the sensor is unknown."""

    name: str = Field(min_length=1)
    common_name: str | None = Field(default=None, description="STAC common name, as the published item will carry it.")
    center_um: float | None = Field(default=None, gt=0, lt=15, description="Centre wavelength, micrometres.")
    fwhm_um: float | None = Field(default=None, gt=0, lt=5, description="Full width at half maximum, micrometres.")
    mtf: float = Field(gt=0, lt=1, description="MTF gain at the Nyquist frequency of the MS grid.")
    in_pan: bool = Field(description="The centre wavelength lies inside the PAN band.")
    asset_keys: tuple[str, ...] = Field(
        default=(), description="Further names of the band in items: key of its own asset, or band label in a file."
    )

    @cached_property
    def labels(self) -> frozenset[str]:
        """Every folded name the band answers to."""
        names = (self.name, self.common_name or self.name, *self.asset_keys)
        return frozenset(fold(name) for name in names)

    def holds(self, wavelength_um: float) -> bool:
        """Whether a wavelength lies in the band's range; False where that is not known."""
        if self.center_um is None or self.fwhm_um is None:
            return False
        return abs(wavelength_um - self.center_um) <= self.fwhm_um / 2


class Delivery(Record):
    """A set of bands the sensor's products come in. The order is that of the files when nothing else names bands."""

    name: str = Field(min_length=1)
    bands: tuple[str, ...] = Field(min_length=1, description="Band names of the contract.")


class JoinRule(Record):
    """When items that hold only PAN, or only some MS bands, are parts of one scene."""

    max_seconds: float = Field(ge=0, le=120, description="Largest difference of acquisition times from that of PAN.")
    min_overlap: float = Field(
        gt=0, le=1, description="Smallest share of the smaller footprint that lies inside that of PAN."
    )
    same: tuple[str, ...] = Field(
        default=("processing:level",), description="Item properties that all parts must agree in, or not have."
    )


class SensorContract(Record):
    """What the pipeline must know about a sensor before it touches a pixel.

    Asset keys are shell patterns, compared without case. Markers are shell patterns compared with the alphanumeric
    words of an asset's key, file name and title, and of the item's id and processing properties. Prefixes of ids are
    shell patterns, too, compared with case.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    platforms: tuple[str, ...] = Field(description="Spellings of the platform; case and punctuation do not count.")
    constellations: tuple[str, ...] = Field(default=(), description="Identify an item that names no platform.")
    instruments: tuple[str, ...] = Field(default=(), description="Identify an item that names no platform.")
    id_prefixes: tuple[str, ...] = Field(default=(), description="Identify an item that names no platform.")
    cameras: tuple[str, ...] = Field(
        default=(),
        description="Instruments that are this sensor; items that name only others come from another camera of the "
        "platform. None declared: all are.",
    )
    ratio: int = Field(ge=2, description="MS pixel size over PAN pixel size.")
    dn_max: int = Field(gt=0, description="Largest DN the sensor's products hold.")
    nodata: float | None = Field(description="DN of pixels without data, used only where the file declares none.")
    pan_asset_keys: tuple[str, ...]
    pan_labels: tuple[str, ...] = Field(default=("pan",), description="Band names and common names of PAN.")
    pan_center_um: float | None = Field(default=None, gt=0)
    pan_fwhm_um: float | None = Field(default=None, gt=0)
    pan_mtf: float = Field(gt=0, lt=1, description="MTF gain of PAN at its own Nyquist frequency.")
    ms_asset_keys: tuple[str, ...] = Field(default=(), description="Keys of multi-band MS assets.")
    bands: tuple[BandSpec, ...] = Field(min_length=1, description="All MS bands, in the order of the output.")
    deliveries: tuple[Delivery, ...] = Field(default=(), description="Band sets; none declared: all bands.")
    sharpened_markers: tuple[str, ...] = Field(default=(), description="Mark what the vendor has already sharpened.")
    join: JoinRule | None = Field(
        default=None, description="Some producers publish PAN and MS, or each band, as an item of its own."
    )
    dn_max_by_key: dict[str, int] = Field(
        default_factory=dict,
        description="Higher ceilings by pattern of the asset key, for products that are scaled differently.",
    )
    warp_ms: bool = Field(
        default=False, description="Warp MS that comes in another CRS to that of PAN, once; otherwise refuse it."
    )
    quality: QualityRule = Field(default=QualityRule(), description="Limits of the quality gate; docs/quality-gate.md.")
    weights: Literal["default", "none"] = Field(description="none: only classical sharpening is justified.")
    source: str = Field(min_length=1, description="Where wavelengths, MTF gains and the DN ceiling come from.")

    @model_validator(mode="after")
    def _consistent(self) -> SensorContract:
        _check_labels_differ(self.bands)
        known = {band.name for band in self.bands}
        for delivery in self.deliveries:
            if unknown := set(delivery.bands) - known:
                raise ValueError(f"delivery {delivery.name} names unknown bands {sorted(unknown)}")
            if len(set(delivery.bands)) != len(delivery.bands):
                raise ValueError(f"delivery {delivery.name} repeats a band")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the contract's content, independent of file layout; part of every recipe."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def band_sets(self) -> tuple[Delivery, ...]:
        """The deliveries, largest first; the full band set when none is declared."""
        declared = self.deliveries or (Delivery(name="all", bands=tuple(band.name for band in self.bands)),)
        return tuple(sorted(declared, key=lambda delivery: -len(delivery.bands)))

    def delivered(self, names: Container[str]) -> tuple[str, ...]:
        """The bands of the largest delivery that is fully among ``names``, in the contract's order; none if none is."""
        complete = (delivery.bands for delivery in self.band_sets if all(name in names for name in delivery.bands))
        chosen = next(complete, ())
        return tuple(band.name for band in self.bands if band.name in chosen)

    def ceiling(self, asset_key: str) -> int:
        """Largest DN in files of that asset key."""
        patterns = self.dn_max_by_key.items()
        return next((top for key, top in patterns if fnmatchcase(asset_key.casefold(), key.casefold())), self.dn_max)

    def claims(self, item_id: str) -> bool:
        """Whether an id, or the name of a file, begins as the producer's do."""
        return any(fnmatchcase(item_id, f"{prefix}*") for prefix in self.id_prefixes)

    def find_band(self, label: str) -> BandSpec | None:
        """The band that goes by ``label`` (name, common name or asset key, in any spelling), or None."""
        folded = fold(label)
        return next((band for band in self.bands if folded in band.labels), None)

    def subset(self, labels: Iterable[str]) -> tuple[BandSpec, ...]:
        """The bands that go by ``labels``, in the order of ``labels``.

        Raises:
            ContractError: The sensor has no band of that name.
        """
        return tuple(self._band(label) for label in labels)

    def delivery_of(self, count: int) -> Delivery | None:
        """The delivery with ``count`` bands that is declared first: how files that name no bands are read."""
        declared = self.deliveries or self.band_sets
        return next((delivery for delivery in declared if len(delivery.bands) == count), None)

    def _band(self, label: str) -> BandSpec:
        band = self.find_band(label)
        if band is None:
            known = ", ".join(band.name for band in self.bands)
            raise ContractError(f"sensor {self.name} has no band {label!r}; it has {known}; use one of these names")
        return band


def _check_labels_differ(bands: tuple[BandSpec, ...]) -> None:
    owner: dict[str, BandSpec] = {}
    for band in bands:
        for label in sorted(band.labels):
            if owner.setdefault(label, band) is not band:
                raise ValueError(f"bands {owner[label].name} and {band.name} both answer to {label!r}")


def contract_schema() -> dict[str, Any]:
    """JSON schema of a contract file, as published in ``pancrafter/schemas/sensor-contract.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **SensorContract.model_json_schema()}
    return json.loads(json.dumps(schema))  # type: ignore[no-any-return]


def parse_contract(text: str, origin: str) -> SensorContract:
    """One contract from YAML ``text``; ``origin`` names the file in messages.

    Raises:
        ContractError: Not YAML, not a mapping, or fields missing, unknown or contradicting each other.
    """
    try:
        content = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ContractError(f"{origin}: not valid YAML ({error}); mend the file") from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ContractError(f"{origin}: found {found}, expected a mapping of fields; see `pancrafter sensors show`")
    try:
        return SensorContract.model_validate(content)
    except ValidationError as error:
        raise ContractError(f"{origin}: {faults_of(error)}; mend these fields") from error


@lru_cache(maxsize=1)
def _bundled() -> Mapping[str, SensorContract]:
    folder = resources.files("pancrafter") / "contracts"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return _by_name((file.name, file.read_text(encoding="utf-8")) for file in files)


def _read_folder(folder: Path) -> dict[str, SensorContract]:
    try:
        if not folder.is_dir():
            raise ContractError(f"{folder}: not a folder; expected a folder of *.yaml sensor contracts")
        files = sorted(file for file in folder.iterdir() if file.suffix.casefold() in (".yaml", ".yml"))
    except OSError as error:
        raise ContractError(f"{folder}: cannot be listed ({error}); expected a folder of sensor contracts") from error
    if not files:
        raise ContractError(f"{folder}: holds no *.yaml file; expected sensor contracts right in this folder")
    return _by_name((str(file), _text_of(file)) for file in files)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"{file}: cannot be read ({error}); expected a text file in UTF-8") from error


def _by_name(texts: Iterable[tuple[str, str]]) -> dict[str, SensorContract]:
    contracts: dict[str, SensorContract] = {}
    for origin, text in texts:
        contract = parse_contract(text, origin)
        if contract.name in contracts:
            raise ContractError(f"{origin}: a second contract named {contract.name!r} in one folder; rename one")
        contracts[contract.name] = contract
    return contracts


class Contracts(dict[str, SensorContract]):
    """Contracts by name; asking for one that is not among them is no defect."""

    def __missing__(self, name: str) -> SensorContract:
        """In place of a KeyError.

        Raises:
            ContractError: Always.
        """
        known = ", ".join(sorted(self))
        raise ContractError(
            f"no sensor contract {name!r}; known are {known}; choose one, or give the folder that holds its "
            "YAML file with --contracts-dir (in Python: contracts_dir)"
        )


def load_contracts(extra_dir: Path | None = None) -> Contracts:
    """All contracts by name: those of ``extra_dir`` first, then the bundled ones they do not replace.

    The order is the precedence where two contracts claim a platform.

    Raises:
        ContractError: A file is not a valid contract.
    """
    extra = _read_folder(extra_dir) if extra_dir is not None else {}
    return Contracts(extra | {name: contract for name, contract in _bundled().items() if name not in extra})


def contracts_of(settings: Settings) -> Contracts:
    """Bundled sensor contracts and those of the user's folder."""
    return load_contracts(Path(settings.contracts_dir) if settings.contracts_dir else None)


def contract_for_platform(platform: str, contracts: Mapping[str, SensorContract]) -> SensorContract | None:
    """The first contract that lists ``platform``, whatever its spelling."""
    folded = fold(platform)
    return next((c for c in contracts.values() if folded in {fold(known) for known in c.platforms}), None)


def get_contract(name: str, extra_dir: Path | None = None) -> SensorContract:
    """The contract called ``name``, or the one that lists ``name`` among its platforms (``WV03``, ``Landsat 8 OLI``).

    Raises:
        ContractError: There is none, or a contract file is not valid.
    """
    contracts = load_contracts(extra_dir)
    return contracts.get(name) or contract_for_platform(name, contracts) or contracts[name]


def generic_contract(band_count: int, ratio: int, dn_max: int, names: Sequence[str] = ()) -> SensorContract:
    """A contract for files of an unknown sensor: generic MTF gains, every band taken as in PAN.

    Bands are called ``names``, else ``band-1`` and so on.

    Raises:
        ContractError: No bands, a ratio below 2, or names that are not one per band or not different.
    """
    if band_count < 1 or ratio < 2:
        raise ContractError(
            f"generic sensor with {band_count} bands at ratio {ratio}; expected 1 or more and 2 or more"
        )
    template = _bundled()[GENERIC]
    mtf = template.bands[0].mtf
    called = names or [f"band-{i}" for i in range(1, band_count + 1)]
    if len({fold(name) for name in called}) != band_count:
        raise ContractError(f"generic sensor with {band_count} bands called {list(called)}; give each its own name")
    bands = tuple(BandSpec(name=name, mtf=mtf, in_pan=True) for name in called)
    return SensorContract.model_validate(
        template.model_dump() | {"bands": bands, "deliveries": (), "ratio": ratio, "dn_max": dn_max}
    )
