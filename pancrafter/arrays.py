"""``pancrafter.sharpen``: two xarray images in, one lazy image out, by the engine of the files and the pipeline.

A chunk of the result is a task that reads its window with halo from the inputs. What belongs to the whole scene (value
ranges, band shifts, injection constants) is one more task, on which all of them wait; it reads every input pixel once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_args

import dask.array as da
import numpy as np
import rioxarray  # noqa: F401  # gives arrays their .rio
import xarray as xr
from affine import Affine
from dask.array.core import normalize_chunks
from dask.delayed import delayed
from numpy.typing import NDArray

from pancrafter.bands import measure_bands
from pancrafter.compute import held_by_cluster
from pancrafter.counting import NO_COMMON_AREA, Tally, check_dn, histogram_of, merge_tallies, ms_tally, value_range
from pancrafter.crs import crs_code
from pancrafter.cube import PAIR_BLOCK_PX, REACH_PX
from pancrafter.engine import PRECISIONS, SharpenerSpec, build_sharpener, fit_sharpener, sharpened_dn
from pancrafter.errors import GridMismatchError, InvalidSceneError
from pancrafter.grid import pair_grids, pixel_centres, require_north_up
from pancrafter.model.devices import resolve_device
from pancrafter.model.names import DEFAULT_WEIGHTS, SharpeningMethod, weights_path
from pancrafter.reading import DN_LIMIT, fill_invalid
from pancrafter.sensors import GENERIC, SensorContract, fold, generic_contract, get_contract
from pancrafter.store import BlockGrid, Mask, Pixels, Window, cut_windows, widened_window, window_inside
from pancrafter.tiles import common_area, plan_window, read_tile, valid_window
from pancrafter.types import AssetRef, PairGrid, PixelGrid, Record, Scene, StagedScene

_KEPT_WINDOWS = 4
"""Windows remembered per scene: pixels and validity of one are asked for one after the other."""

_MASKS = frozenset({"alpha", "mask"})
"""What bands that are no image are called, folded."""

_INSIDE_A_TASK = "synchronous"
"""Dask scheduler for what a task computes itself. Named at each call: Dask's setting would hold for all threads."""


def sharpen(
    pan: xr.DataArray,
    ms: xr.DataArray,
    *,
    sensor: str | None = None,
    method: SharpeningMethod = "pan-crafter",
    weights: str = DEFAULT_WEIGHTS,
    device: str = "cpu",
    precision: str = "float32",
    chunk_px: int = 512,
    contracts_dir: str | Path | None = None,
) -> xr.DataArray:
    """Sharpen a multispectral image with a panchromatic one, lazily.

    The pixels are those of ``pancrafter sharpen`` on the same files. Inputs are best chunked (``chunks=`` of
    ``rioxarray.open_rasterio``); they are read several times, so load what is costly to compute, or store it first.

    Args:
        pan: (y, x) or (1, y, x) whole DN with a CRS and transform (``.rio``). Missing are NaN and ``.rio.nodata``, by
            default the nodata value of the sensor's contract.
        ms: (band, y, x) of the same CRS, pixels a whole number of times as large, 2 or more, north up. Where the number
            is only nearly whole (3.997) the command resamples MS; of arrays do so first, with ``ms.rio.reproject``. Of
            both, a band that ``long_name`` or the coordinate of the bands calls alpha or mask is no image: pixels are
            missing where it is 0. Bands are those of the sensor that they are called (by texts in their coordinate,
            else by ``long_name``), in any order; without names of its bands they are taken for the sensor's in its
            usual order.
        sensor: Sensor contract by name; default: generic MTF gains and band names (``generic``).
        method: ``pan-crafter``, ``mtf-glp-fs``, ``gsa``, ``brovey`` or ``exp``.
        weights: Shipped weights by name, or a checkpoint file that all workers see.
        device: torch device of the workers: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``, which is CUDA where the worker
            that describes the scene has it.
        precision: ``float32`` or ``bfloat16``.
        chunk_px: Edge of a chunk of the result, PAN pixels.
        contracts_dir: Folder with sensor contracts of your own.

    Returns:
        (band, y, x) DN on the PAN pixels of the overlap, uint8 where both are stored so, else uint16, with CRS,
        transform and nodata: that of MS or PAN, or 0 where neither fits and pixels can be missing (NaN, -9999);
        measured pixels are then at least 1. Bands lie in the order of MS; their scale, offset and ``long_name`` (band
        descriptions) are those of MS too, or the texts in its coordinate.
        Computing a chunk raises InvalidSceneError where pixels are no whole DN from 0 to 65535, more than a few lie
        above the ceiling of the sensor's contract or above 255 though stored as bytes, or none is valid in PAN and MS
        at once; DeviceError where a worker lacks the device.

    Raises:
        GridMismatchError: An input has no georeference or is not north up, or the two do not lie on one another.
        InvalidSceneError: An input has other axes, is empty or was persisted on a Dask cluster, the bands are not the
            sensor's or contradict what their attributes tell, or there is no such method, precision or ``chunk_px``.
        ContractError: There is no such sensor, or a contract of your own is not valid.
        WeightsError: No shipped weights have this name; of a file, computing a chunk raises it.
    """
    _check_options(method, precision, chunk_px)
    if method == "pan-crafter" and Path(weights).stem == str(weights):  # a file may lie where only workers see it
        weights_path(weights)
    fine, coarse = _Image.of(pan, "pan"), _Image.of(ms, "ms")
    if len(fine.data) != 1:
        raise GridMismatchError(f"pan has {len(fine.data)} bands, expected one")
    ratio = round(coarse.grid.transform[0] / fine.grid.transform[0])
    dtype = _dn_dtype(pan, ms)
    if sensor is None or sensor == GENERIC:
        contract = _generic(len(coarse.data), ratio)
    else:
        contract = _of_bands(get_contract(sensor, Path(contracts_dir) if contracts_dir else None), coarse.bands)
    fine, coarse = (image.or_nodata(contract.nodata) for image in (fine, coarse))
    scene = _LazyScene(fine, coarse, pair_grids(fine.grid, coarse.grid, contract.ratio), contract, dtype, chunk_px)
    request = _Request(method=method, weights=weights, device=device, precision=precision)
    shared = delayed(scene, traverse=False)  # one node, or every chunk's task would carry the inputs' graphs along
    known = delayed(_describe, pure=True)(shared, request)
    edges = ((len(coarse.data),), *normalize_chunks(chunk_px, scene.pan_shape_yx))  # type: ignore[no-untyped-call]
    sharpened = da.map_blocks(  # type: ignore[no-untyped-call]
        _sharpen_chunk, shared, known, chunks=edges, meta=np.empty((0, 0, 0), dtype)
    )
    return _georeferenced(sharpened, scene, pan, ms, coarse)


def _check_options(method: str, precision: str, chunk_px: int) -> None:
    for what, given, known in (("method", method, get_args(SharpeningMethod)), ("precision", precision, PRECISIONS)):
        if given not in known:
            raise InvalidSceneError(f"no {what} {given!r}; choose one of {', '.join(known)}")
    if chunk_px < 1:
        raise InvalidSceneError(f"chunk_px is {chunk_px}, expected at least 1 PAN pixel; leave it out for 512")


class _Request(Record):
    """What was asked for, apart from the pixels."""

    method: SharpeningMethod
    weights: str
    device: str
    precision: str


class _Known(Record):
    """What every window needs to know about the whole scene."""

    staged: StagedScene
    spec: SharpenerSpec


class _Bands(NamedTuple):
    """What an array tells of those of its bands that are image; the others are masks."""

    places: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]
    """By texts in their coordinate, then by ``long_name``: of these what has one for each band, which may be empty."""
    scaling: Mapping[str, Any]  # Any: a number, or a tuple with one per band
    """How DN become physical values: the attributes that rioxarray reads from and writes to files."""

    @classmethod
    def of(cls, planes: xr.DataArray, name: str) -> _Bands:
        """Read off (band, y, x): the coordinate of the bands goes with their pixels wherever they are moved."""
        axis = planes.dims[0]
        labels = planes.coords[axis].to_numpy().tolist() if axis in planes.coords else range(1, len(planes) + 1)
        texts = tuple(label if isinstance(label, str) else "" for label in labels)
        called = [names for names in (texts, _told_of_bands(planes, "long_name", labels, name)) if any(names)]
        masks = ({place for place, text in enumerate(names) if fold(str(text)) in _MASKS} for names in called)
        every, masked = tuple(range(len(planes))), next(filter(None, masks), set())
        places = tuple(place for place in every if place not in masked) or every
        common = {key: planes.attrs[key] for key in ("scale_factor", "add_offset") if key in planes.attrs}
        told = {key: _told_of_bands(planes, key, labels, name) for key in ("scales", "offsets")}
        per_band = {key: tuple(values[place] for place in places) for key, values in told.items() if values}
        names = tuple(tuple(str(texts[place] or "") for place in places) for texts in called)
        return cls(places, names, common | per_band)


def _told_of_bands(
    planes: xr.DataArray, attribute: str, labels: Sequence[Any], name: str
) -> tuple[Any, ...]:  # Any: what coordinates and attributes hold
    """What an attribute with one value for each band of a file tells of each of these bands, none if that is unknown.

    Selecting bands leaves it whole, and their numbers in the coordinate say which they were. Where it was not left
    whole, it was written for these bands.
    """
    values = planes.attrs.get(attribute, ())
    values = (values,) if np.isscalar(values) else tuple(values)
    numbered = len({*labels} & {*range(1, len(values) + 1)}) == len(planes)
    if len(values) != len(planes):
        return tuple(values[int(number) - 1] for number in labels) if numbered else ()
    if numbered and [*labels] != sorted(labels) and len(set(values)) > 1:
        raise InvalidSceneError(
            f"{name}: bands are numbered {', '.join(f'{number:g}' for number in labels)}, and {attribute} is {values}, "
            f"which may be in the order of the bands or of their numbers; bring {attribute} into the order of the "
            f"bands, then number them anew with .assign_coords({planes.dims[0]}=range(1, {len(planes) + 1}))"
        )
    return values


class _Image:
    """One input: lazy pixels (band, y, x), what marks missing ones, and the grid.

    Not a dataclass: Dask looks into those and would compute the pixels whenever one is handed to a task.
    """

    def __init__(
        self, planes: Any, nodata: float | None, grid: PixelGrid, name: str, bands: _Bands
    ) -> None:  # Any: dask.array is untyped
        self.planes = planes
        self.bands = bands
        self.data = planes if len(bands.places) == len(planes) else planes[list(bands.places)]
        masks = [plane for index, plane in enumerate(planes) if index not in bands.places]
        self.opaque = [plane > 0 if nodata == 0 else plane != 0 for plane in masks]  # NaN is what was nodata
        self.nodata = nodata
        self.grid = grid
        self.name = name

    @classmethod
    def of(cls, image: xr.DataArray, name: str) -> _Image:
        """Read off a DataArray with rioxarray's accessor; ``name`` is ``pan`` or ``ms``."""
        _check_axes(image, name)
        crs, transform = image.rio.crs, image.rio.transform(recalc=True)
        if crs is None or transform.is_identity:
            raise GridMismatchError(
                f'{name} has no CRS or transform; open Zarr and netCDF with decode_coords="all", or set them with '
                ".rio.write_crs and .rio.write_transform"
            )
        shape = (image.rio.height, image.rio.width)
        grid = PixelGrid(
            crs=crs_code(crs, transform, shape) or crs.to_wkt(), transform=tuple(transform)[:6], shape_yx=shape
        )
        axes = image.rio.y_dim, image.rio.x_dim
        if (grid.transform[0] < 0 or grid.transform[4] > 0) and all(axis in image.coords for axis in axes):
            raise GridMismatchError(
                f"{name} has rows that run north or columns that run west, expected rows that run south and columns "
                f"that run east; sort it with .sortby({axes[0]!r}, ascending=False).sortby({axes[1]!r})"
            )
        require_north_up(name, grid)
        planes = image.expand_dims("band") if image.ndim == 2 else image
        nodata = image.rio.encoded_nodata if image.rio.encoded_nodata is not None else image.rio.nodata
        planes = planes.transpose(..., image.rio.y_dim, image.rio.x_dim)
        data = da.asarray(planes.data)  # type: ignore[no-untyped-call]
        if held_by_cluster(data):
            raise InvalidSceneError(
                f"{name} was persisted on a Dask cluster, expected an array that any task can read by itself; leave "
                ".persist() out, take the pixels into memory with .load(), or write them with .to_zarr() and open that"
            )
        return cls(data, None if nodata is None else float(nodata), grid, name, _Bands.of(planes, name))

    def or_nodata(self, nodata: float | None) -> _Image:
        """The same image, of which ``nodata`` marks missing pixels unless it says by itself which ones are."""
        given = nodata if self.nodata is None and not self.opaque else self.nodata
        return _Image(self.planes, given, self.grid, self.name, self.bands)

    @property
    def may_have_holes(self) -> bool:
        """Whether pixels can be missing, as far as is known without reading them: floats may be NaN."""
        return self.nodata is not None or bool(self.opaque) or self.data.dtype.kind == "f"

    def read(self, window: Window) -> tuple[Pixels, NDArray[np.bool_]]:
        """DN (band, y, x) with zeros where missing, and validity (y, x)."""
        values = np.asarray(self.data[(slice(None), *window)].compute(scheduler=_INSIDE_A_TASK))
        valid = np.isfinite(values)
        if self.nodata is not None:
            valid &= values != self.nodata
        for opaque in self.opaque:
            valid &= opaque[window].compute(scheduler=_INSIDE_A_TASK)
        found = np.where(valid, values, 0)
        if found.min() < 0 or found.max() > DN_LIMIT or not np.array_equal(found, np.rint(found)):
            y, x = window
            raise InvalidSceneError(
                f"{self.name}: rows {y.start}..{y.stop - 1}, columns {x.start}..{x.stop - 1} hold values from "
                f"{found.min():g} to {found.max():g}, expected whole DN from 0 to {DN_LIMIT}; scale reflectance to "
                "uint16, open files with mask_and_scale=False, or declare nodata with .rio.write_nodata"
            )
        return found.astype(np.uint16), valid.all(axis=0)


def _check_axes(image: xr.DataArray, name: str) -> None:
    if not isinstance(image, xr.DataArray):
        raise InvalidSceneError(
            f"{name} is of type {type(image).__name__}, expected an xarray.DataArray; open a file with "
            "rioxarray.open_rasterio, or sharpen files with the command `pancrafter sharpen PAN MS OUT`"
        )
    counts, expected = ((2, 3), "(y, x) or (1, y, x)") if name == "pan" else ((3,), "(band, y, x)")
    if image.ndim not in counts or 0 in image.shape:
        found = ", ".join(f"{axis}: {size}" for axis, size in image.sizes.items())
        raise InvalidSceneError(
            f"{name} has ({found}), expected {expected}, each 1 or more; select one value of any further axis, and a "
            "single MS band as ms[[0]]"
        )


class _LazyScene(BlockGrid):
    """Reads like ``pancrafter.store.SceneStore``, from lazy arrays; holes are filled as staging fills them."""

    def __init__(
        self, pan: _Image, ms: _Image, grid: PairGrid, contract: SensorContract, dtype: str, block_px: int
    ) -> None:
        self._pan = pan
        self._ms = ms
        super().__init__(grid, block_px)
        self.contract = contract
        self.dtype = dtype
        self._staged: StagedScene | None = None
        self._cached = lru_cache(maxsize=_KEPT_WINDOWS)(self._filled)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_cached"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cached = lru_cache(maxsize=_KEPT_WINDOWS)(self._filled)

    def cut_into(self, block_px: int) -> _LazyScene:
        """The same scene in other blocks."""
        return _LazyScene(self._pan, self._ms, self.grid, self.contract, self.dtype, block_px)

    def told(self, staged: StagedScene) -> _LazyScene:
        """The same scene, knowing its constants."""
        twin = _LazyScene(self._pan, self._ms, self.grid, self.contract, self.dtype, self.block_px)
        twin._staged = staged
        return twin

    @property
    def staged(self) -> StagedScene:
        """The scene's constants."""
        assert self._staged is not None
        return self._staged

    @property
    def nodata(self) -> float | None:
        """Nodata of the result: that of MS, or of PAN, where its type can hold it, else 0 if pixels can be missing."""
        limit = int(np.iinfo(self.dtype).max)
        images = (self._ms, self._pan)
        instead = 0.0 if any(image.may_have_holes for image in images) else None
        given = (image.nodata for image in images)
        return next((value for value in given if value is not None and value in range(limit + 1)), instead)

    @property
    def band_count(self) -> int:
        """How many MS bands there are."""
        return len(self._ms.data)

    def read_pan(self, window: Window) -> Pixels:
        """Filled PAN DN (y, x)."""
        pan: Pixels = self._read("pan", window)[0][0]
        return pan

    def read_ms(self, window: Window) -> Pixels:
        """Filled MS DN (band, y, x)."""
        return self._read("ms", window)[0]

    def read_pan_valid(self, window: Window) -> Mask:
        """1 where PAN was measured."""
        return self._read("pan", window)[1].astype(np.uint8)

    def read_ms_valid(self, window: Window) -> Mask:
        """1 where every band was measured."""
        return self._read("ms", window)[1].astype(np.uint8)

    def _read(self, name: str, window: Window) -> tuple[Pixels, NDArray[np.bool_]]:
        rows, cols = ((part.start, part.stop) for part in window)
        found: tuple[Pixels, NDArray[np.bool_]] = self._cached(name, rows, cols)
        return found

    def _filled(self, name: str, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[Pixels, NDArray[np.bool_]]:
        image, offset, shape, reach = (
            (self._pan, self.grid.pan_offset_yx, self.pan_shape_yx, REACH_PX)
            if name == "pan"
            else (self._ms, self.grid.ms_offset_yx, self.ms_shape_yx, -(-REACH_PX // self.grid.ratio))
        )
        window = slice(*rows), slice(*cols)
        pixels, valid = image.read(_shifted(window, offset))
        if valid.all():
            return pixels, valid
        wide = widened_window(window, reach, shape)
        filled, _ = fill_invalid(*image.read(_shifted(wide, offset)), reach)
        return filled[:, *window_inside(window, wide)], valid


def _shifted(window: Window, offset_yx: tuple[int, int]) -> Window:
    y, x = (slice(part.start + offset, part.stop + offset) for part, offset in zip(window, offset_yx, strict=True))
    return y, x


def _dn_dtype(pan: xr.DataArray, ms: xr.DataArray) -> str:
    """Type of the result: uint8 where PAN and MS are stored so, though masking made floats of them, else uint16."""
    return "uint8" if all(_stored_dtype(image) == np.uint8 for image in (pan, ms)) else "uint16"


def _stored_dtype(image: xr.DataArray) -> np.dtype[Any]:
    told = image.encoding.get("rasterio_dtype", image.encoding.get("dtype", image.dtype))
    return np.dtype(told if image.dtype.kind == "f" else image.dtype)


def _generic(bands: int, ratio: int) -> SensorContract:
    if ratio < 2:
        raise GridMismatchError(
            f"ms pixels are {ratio} times the pan pixels, expected 2 or more; are pan and ms swapped?"
        )
    return generic_contract(bands, ratio, DN_LIMIT)


def _of_bands(contract: SensorContract, bands: _Bands) -> SensorContract:
    """The contract for these of its bands, in their order."""
    count = len(bands.places)
    known = ({spec.name: spec for spec in map(contract.find_band, names) if spec is not None} for names in bands.names)
    named = next((specs for specs in known if len(specs) == count), {})
    if named:
        found, complete = ", ".join(named), bool(contract.delivered(named))
    else:
        delivery = contract.delivery_of(count)
        found, complete = f"{count} bands", delivery is not None
        named = {spec.name: spec for spec in contract.subset(delivery.bands if delivery else ())}
    if not complete:
        raise InvalidSceneError(f"ms has {found}, none of the products of {contract.name}; choose another sensor")
    return contract.model_copy(update={"bands": tuple(named.values()), "deliveries": ()})


# --- tasks ----------------------------------------------------------------------------------------------------------


def _sharpen_chunk(
    scene: _LazyScene, known: _Known, block_info: Mapping[None, Mapping[str, Any]]
) -> NDArray[Any]:  # Any: as Dask describes a chunk
    """One chunk of the result: (band, y, x) DN."""
    _, rows, cols = block_info[None]["array-location"]
    window = slice(*rows), slice(*cols)
    told, sharpener = scene.told(known.staged), build_sharpener(known.spec)
    valid = valid_window(told, window)
    plan = plan_window(told, window, sharpener.halo_px(known.staged), scene.block_px)
    tile = read_tile(told, plan) if valid.any() else None
    return sharpened_dn(sharpener, tile, plan.core, valid, known.staged).astype(scene.dtype)


def _describe(scene: _LazyScene, request: _Request) -> _Known:
    """Read the whole scene once, then a bounded number of windows again."""
    device = resolve_device(request.device)  # of this worker; before the scene is read for nothing
    tally = _tally(scene)
    names = tuple(band.name for band in scene.contract.bands)
    limit = min(scene.contract.dn_max, int(np.iinfo(scene.dtype).max))
    for channel, histogram in zip(("PAN", *names), (tally.pan, *tally.ms), strict=True):
        check_dn(histogram, limit, channel=channel, sensor=scene.contract.name)
    if not any(
        common_area(scene, scene.grid, window).any() for window in cut_windows(scene.pan_shape_yx, scene.block_px)
    ):
        raise InvalidSceneError(NO_COMMON_AREA)
    gain = float(np.mean([band.mtf for band in scene.contract.bands]))
    measured = measure_bands(scene, scene.grid, gain=gain, scheduler=_INSIDE_A_TASK)
    staged = StagedScene(
        scene=_placeholder(names, scene.contract.name),
        store_uri="",
        grid=scene.grid,
        dtype=scene.dtype,
        dn_max=limit,
        nodata=scene.nodata,
        pan_range=value_range(tally.pan),
        ms_ranges=tuple(value_range(histogram) for histogram in tally.ms),
        **measured.described(),
        # an upper bound, as PAN and MS are counted apart; 1 where neither has a hole
        valid_share=min(
            float(counts.sum() / math.prod(shape))
            for counts, shape in ((tally.pan, scene.pan_shape_yx), (tally.ms[0], scene.ms_shape_yx))
        ),
    )
    if request.method != "mtf-glp-fs":  # which is fitted on all pixels, others on some blocks: those of files
        scene = scene.cut_into(PAIR_BLOCK_PX)
    spec = fit_sharpener(
        scene.told(staged),
        scene.contract,
        request.method,
        weights=request.weights,
        device=device,
        precision=request.precision,
    )
    return _Known(staged=staged, spec=spec)


def _tally(scene: _LazyScene) -> Tally:
    """How often each DN occurs among valid pixels, for PAN and per band; summed up one window at a time."""
    pan, ms = (cut_windows(shape, scene.block_px) for shape in (scene.pan_shape_yx, scene.ms_shape_yx))
    tallies = chain(
        (Tally(histogram_of(scene.read_pan(window), scene.read_pan_valid(window))) for window in pan),
        (ms_tally(scene.read_ms(window), scene.read_ms_valid(window), 0) for window in ms),
    )
    return reduce(lambda total, found: merge_tallies([total, found]), tallies)


def _placeholder(bands: tuple[str, ...], sensor: str) -> Scene:
    """The scene record of arrays: there is no item and no file."""
    return Scene(
        collection="arrays",
        item_id="pair",
        sensor=sensor,
        acquired="",
        pan=AssetRef(key="pan", href=""),
        ms=tuple(AssetRef(key="ms", href="", band=band + 1) for band in range(len(bands))),
        bands=bands,
        fingerprint="",
        source_href="",
        geometry={},
    )


def _georeferenced(
    data: da.Array, scene: _LazyScene, pan: xr.DataArray, ms: xr.DataArray, image: _Image
) -> xr.DataArray:
    y, x = _centres(scene.grid, pan)
    numbered = "band" in ms.dims and "band" in ms.coords
    numbers = ms.coords["band"].to_numpy()[list(image.bands.places)] if numbered else np.arange(1, scene.band_count + 1)
    result = xr.DataArray(data, dims=("band", "y", "x"), coords={"band": numbers, "y": y, "x": x}, name="sharpened")
    usual = [band.name for band in scene.contract.bands]
    given = next(iter(image.bands.names), usual)
    names = tuple(name or instead for name, instead in zip(given, usual, strict=True))
    result.attrs |= {**image.bands.scaling, "long_name": names}
    result = result.rio.write_crs(ms.rio.crs).rio.write_transform(Affine(*scene.grid.pan.transform))
    placed: xr.DataArray = result if scene.nodata is None else result.rio.write_nodata(scene.nodata)
    return placed


def _centres(grid: PairGrid, pan: xr.DataArray) -> Iterator[Any]:  # Any: numbers in a list or an array
    """Coordinates of rows and of columns: PAN's own, as xarray joins arrays only where they agree to the last bit."""
    axes = zip((pan.rio.y_dim, pan.rio.x_dim), grid.pan_offset_yx, pixel_centres(grid.pan), strict=True)
    for axis, first, computed in axes:
        yield pan.coords[axis].to_numpy()[first : first + len(computed)] if axis in pan.coords else computed
