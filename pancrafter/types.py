"""The frozen records that travel between the steps: references and small facts, never pixels.

All of them serialise to JSON and back without loss, so the ledger and Prefect can carry them.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

FORMAT_VERSION = 1
"""Version of the staged layout and of the published item; part of every recipe."""


CONSISTENCY_BLOCK_MS_PX = 8
"""Side of the blocks of the local consistency and of the quality raster's pixels, MS pixels."""

Json = dict[str, Any]
"""A parsed JSON document."""

Bbox = tuple[float, float, float, float]
"""West, south, east, north in degrees; west is above east where it crosses the antimeridian."""


def longitudes(west: float, east: float) -> list[tuple[float, float]]:
    """The range from west to east; two where it crosses the antimeridian."""
    return [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]


class Record(BaseModel):
    """A frozen value that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def faults_of(error: ValidationError) -> str:
    """What does not fit, field by field, on one line; a fault of the whole has no field."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in error.errors()
    )


class Sums(Record):
    """Counts and sums that add up field by field: numbers, or tuples of as many numbers."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: _added(value, getattr(other, name)) for name, value in self})


def _added(a: Any, b: Any) -> Any:  # Any: a number, or a tuple of numbers
    return tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b


class AssetRef(Record):
    """One band of one file in the source catalog."""

    key: str
    href: str = Field(description="Unsigned absolute path or URL.")
    band: int = Field(default=1, ge=1, description="1-based band number inside the file.")
    assumed: bool = Field(
        default=False,
        description="The item names no bands of the file, so ``band`` is the sensor's usual one; the header may know.",
    )
    nodata: FiniteFloat | None = Field(default=None, description="By the item; it counts where the header has none.")
    scale: FiniteFloat | None = Field(default=None, description="Likewise.")
    offset: FiniteFloat | None = Field(default=None, description="Likewise.")


class Scene(Record):
    """A source item that was recognised: which pixels belong to it and where they are.

    ``ms`` and ``bands`` run in the order of the sensor contract. ``fingerprint`` says what the source really was when
    it was found (sha256 over updated time, hrefs, and size/checksum/ETag of each asset where known).
    ``properties`` holds what the published item carries over (platform, instruments, providers, license, ...), and
    whether the reader is charged.
    """

    collection: str
    item_id: str
    sensor: str = Field(description="Name of the sensor contract.")
    acquired: str = Field(description="Acquisition time, RFC 3339 in UTC.")
    pan: AssetRef
    ms: tuple[AssetRef, ...]
    bands: tuple[str, ...]
    fingerprint: str
    source_href: str = Field(description="Unsigned self link of the source item.")
    further_source_hrefs: tuple[str, ...] = Field(
        default=(), description="Those of the other items, where producers publish PAN and MS as items of their own."
    )
    geometry: dict[str, Any]
    properties: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """``collection/item_id``: how messages and the ledger name this scene."""
        return f"{self.collection}/{self.item_id}"

    @model_validator(mode="after")
    def _one_asset_per_band(self) -> Scene:
        if len(self.ms) != len(self.bands):
            raise ValueError(f"{len(self.ms)} ms assets for {len(self.bands)} bands")
        return self


PART_OF_SCENE = "part_of_scene"
"""Refusal code of an item that waits for those with the rest of its scene."""

JOINED = "joined"
"""Refusal code of an item that is no scene of its own: its bands are in one that was joined from several items."""


class Refusal(Record):
    """A source item that will not be sharpened, and why. ``code`` is stable, ``reason`` is for people."""

    collection: str
    item_id: str
    code: str
    reason: str
    sensor: str | None = None

    @property
    def waits(self) -> bool:
        """Whether the item becomes part of a scene as soon as its other parts are found."""
        return self.code == PART_OF_SCENE

    @property
    def key(self) -> str:
        """``collection/item_id``."""
        return f"{self.collection}/{self.item_id}"


class PixelGrid(Record):
    """A north-up pixel grid. ``transform`` is affine a, b, c, d, e, f with x = a*col + b*row + c."""

    crs: str = Field(description="Authority code like EPSG:32633 where there is one, else WKT2.")
    transform: tuple[float, float, float, float, float, float]
    shape_yx: tuple[int, int]


class PairGrid(Record):
    """How the pixels of PAN and MS relate, after cropping both to their overlap.

    The centre of MS pixel ``i`` lies at PAN pixel index ``ratio * i + phase`` (index 0 is the centre of the first
    cropped PAN pixel), so edge-aligned products have phase ``(ratio - 1) / 2`` and centre-aligned ones phase 0. The
    output grid is ``pan``. Offsets are the crop's first row and column in the source files.
    """

    pan: PixelGrid
    ms_shape_yx: tuple[int, int]
    ratio: int = Field(ge=2)
    phase_yx: tuple[float, float]
    pan_offset_yx: tuple[int, int] = (0, 0)
    ms_offset_yx: tuple[int, int] = (0, 0)


class ValueRange(Record):
    """DN that the network sees as -1 (``low``) and +1 (``high``); one per scene and channel, never per tile."""

    low: float
    high: float

    @model_validator(mode="after")
    def _not_empty(self) -> ValueRange:
        if not self.high > self.low:
            raise ValueError(f"empty value range [{self.low}, {self.high}]")
        return self


class StagedScene(Record):
    """A scene whose pixels lie in a Zarr v3 group on a common grid (layout: ``pancrafter.store``)."""

    scene: Scene
    store_uri: str
    grid: PairGrid
    dtype: str = Field(description="NumPy dtype name of the source DN.")
    dn_max: int = Field(description="Largest DN the output may hold (contract ceiling within the dtype).")
    nodata: float | None
    pan_range: ValueRange
    ms_ranges: tuple[ValueRange, ...]
    band_shift_yx: tuple[tuple[float, float], ...] = Field(
        description="Per band: where MS content really lies on the PAN grid minus nominal, in PAN pixels; (0, 0) "
        "where no significant, certain shift was measured."
    )
    shift_confidence: tuple[float, ...] = Field(
        description="Per band: correlation of fine detail with PAN at its own measured shift, 0 to 1."
    )
    measured_mtf: float | None = Field(
        default=None,
        description="Mean MTF of the bands relative to PAN's, at the MS Nyquist frequency, as measured on the scene; "
        "None where it could not be, and the contract's counts.",
    )
    mtf_shape: float = Field(
        default=2.0, ge=2, description="How steeply it falls there: 2 as a Gaussian (``resample.Mtf``)."
    )
    valid_share: float = Field(ge=0, le=1, description="Share of PAN pixels where PAN and MS are both valid.")
    bytes_read: int = 0
    ms_resampled: bool = Field(default=False, description="MS was interpolated once to a grid that fits PAN.")
    assumed_order: bool = Field(
        default=False, description="Neither item nor header says which band is which: the sensor's usual order counts."
    )
    scale: tuple[float, ...] | None = Field(default=None, description="Per band scale as in the source header.")
    offset: tuple[float, ...] | None = None

    @property
    def has_holes(self) -> bool:
        """Whether any PAN pixel is invalid in PAN or MS; otherwise no mask needs to be read."""
        return self.valid_share < 1


class Quality(Record):
    """What ``assess`` measured on a sharpened scene. Indices are unitless; definitions in ``pancrafter.metrics``."""

    consistency_ergas: float = Field(description="ERGAS of the sharpened image degraded to MS against the input MS.")
    consistency_sam_deg: float
    detail_ergas: float = Field(
        default=0.0,
        description="ERGAS of the input MS without its own detail (what a Gaussian of 2 MS pixels takes away): the "
        "scale on which consistency_ergas is to be read. Large for bright roofs on dark ground.",
    )
    detail_sam_deg: float = Field(default=0.0, description="The same for consistency_sam_deg.")
    d_lambda: float
    d_s: float
    hqnr: float
    residual_shift_px: float | None = Field(
        description="Largest per-band PAN-MS shift left after alignment, PAN pixels. None: nothing certain was found."
    )
    reduced_ergas: float | None = Field(description="ERGAS at reduced resolution (Wald), sampled; None: too small.")
    best_classical: str | None
    best_classical_reduced_ergas: float | None
    gain_over_classical: float | None = Field(description="1 - reduced_ergas / best_classical_reduced_ergas.")
    gain_over_fallback: float | None = Field(
        default=None, description="The same over the one classical method that would take the result's place."
    )
    clipped_share: float
    invalid_share: float
    radiometric_bias: float | None = Field(
        default=None, description="Largest relative difference of a band's mean from its MS, after degradation."
    )
    band_confusion: float | None = Field(
        default=None,
        description="Largest ratio of a band's RMSE against its own MS band to that against another one; above 1 "
        "bands are swapped. None: one band only.",
    )
    worst_block_ergas: float | None = Field(
        default=None,
        description="Largest consistency ERGAS of a block of 8 by 8 MS pixels; reference, squared and added: the "
        "scene's mean and the block's own detail.",
    )
    worst_block_error: float | None = Field(
        default=None,
        description="Largest consistency error of such a block over its contrast; around 1 it shows other ground. "
        "Contrast, squared: the detail of the scene plus the block's own.",
    )
    inconsistent_share: float | None = Field(
        default=None, description="Share of these blocks that miss the local limit and are marked in the mask."
    )
    displacement_px: float | None = Field(
        default=None, description="Largest displacement of a band, degraded, against its MS input, PAN pixels."
    )
    detail_correlation: float | None = Field(
        default=None,
        description="Multiple correlation, 0 to 1, of PAN's detail finer than an MS pixel with that of the sharpened "
        "bands. Low: the detail in the result is not PAN's. None: PAN has none.",
    )
    pan_correlation: float | None = Field(
        default=None,
        description="Multiple correlation, 0 to 1, of PAN's detail at MS scale with that of the MS bands. Low: PAN "
        "shows other ground than MS. None: no detail.",
    )


class TruthScores(Record):
    """Scores against the simulator's truth at full resolution, for one method."""

    method: str
    ergas: float
    sam_deg: float
    q2n: float
