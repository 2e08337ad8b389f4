"""Two files in, one sharpened COG out: a single scene through the staging, engine and COG code of the pipeline.

No catalog, ledger or quality gate: the pair is described in a temporary folder beside the output, which is gone
afterwards. What the headers say decides; where they do not name the sensor, a generic contract stands in.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pancrafter.catalog import judge_document
from pancrafter.compute import Compute, open_compute
from pancrafter.errors import InvalidSceneError, SinkError
from pancrafter.ingest import Georeference, add_pair
from pancrafter.model.names import weights_sha256
from pancrafter.scratch import remove_folder
from pancrafter.sensors import GENERIC, SensorContract, contract_for_platform, generic_contract, load_contracts
from pancrafter.settings import Settings
from pancrafter.steps import STAGING_REACH_PX, image_blocks, sharpen_block_task, sharpener_spec
from pancrafter.types import Record, Scene, StagedScene

if TYPE_CHECKING:
    from pancrafter.cog import Block as CogBlock
    from pancrafter.engine import SharpenerSpec
    from pancrafter.store import SceneStore

UNKNOWN_SENSOR = "unknown-sensor"
"""Name under which the generic contract is used for files of an unknown sensor."""

Method = Literal["pan-crafter", "mtf-glp-fs"]
Phase = Literal["reading", "adapting", "sharpening", "writing"]
Progress = Callable[[Phase, int, int], None]
"""Takes what is being done, and how many of how many PAN pixels of it are finished."""

_DN_MAX = {"uint8": 255}
_DN_MAX_WIDE = 65535


class FileHeader(Record):
    """What the header of a raster file says that tells sensors and ratios apart."""

    shape_yx: tuple[int, int]
    band_count: int
    dtype: str
    crs: str | None
    pixel_size: float | None
    """Width of a pixel in units of the CRS, None without georeference."""
    satellite: str | None


class SharpenedPair(Record):
    """A finished output file and what it took."""

    path: str
    size_bytes: int
    sensor: str
    method: Method
    adapted: str | None
    """Whether the network was adapted to the scene and why (not); None where it was not asked for."""
    bands: tuple[str, ...]
    dtype: str
    shape_yx: tuple[int, int]
    crs: str
    ratio: int
    largest_shift_px: float
    """Largest PAN-MS shift that was corrected, PAN pixels."""
    valid_share: float
    mpx: float
    sharpen_seconds: float
    seconds: float

    @property
    def mpx_per_s(self) -> float:
        """Megapixels of PAN sharpened per second, reading and writing left out."""
        return self.mpx / self.sharpen_seconds


def read_file_header(path: str | Path) -> FileHeader:
    """Size, type, pixel size and satellite of a raster file, without its pixels.

    Raises:
        InvalidSceneError: There is no such file, or it is no raster.
    """
    if "://" not in str(path) and not Path(path).is_file():
        raise InvalidSceneError(f"{path}: no such file; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                placed = source.crs is not None and not source.transform.is_identity
                return FileHeader(
                    shape_yx=source.shape,
                    band_count=source.count,
                    dtype=source.dtypes[0],
                    crs=source.crs.to_string() if placed else None,
                    pixel_size=abs(source.transform.a) if placed else None,
                    satellite=source.tags(ns="IMAGERY").get("SATELLITEID"),
                )
    except RasterioError as err:
        raise InvalidSceneError(
            f"{path}: not a readable raster ({err}); expected a GeoTIFF or another format that GDAL reads"
        ) from err


def infer_contract(pan: Path, ms: Sequence[Path], contracts: Mapping[str, SensorContract]) -> SensorContract:
    """The contract of the satellite that the PAN header or file name names, else a generic one for these files.

    Raises:
        InvalidSceneError: A file cannot be read, or PAN pixels are not smaller than MS pixels.
    """
    generic, header = contract_for_files(pan, ms), read_file_header(pan)
    named = contract_for_platform(header.satellite, contracts) if header.satellite else None
    known = named or next((c for c in contracts.values() if pan.name.startswith(c.id_prefixes or "\0")), None)
    fits = known is not None and known.ratio == generic.ratio and known.delivery_of(len(generic.bands)) is not None
    return known if known is not None and fits else generic


def contract_for_files(pan: Path, ms: Sequence[Path]) -> SensorContract:
    """A generic contract with the band count, ratio and DN ceiling of these files.

    Raises:
        InvalidSceneError: A file cannot be read, or PAN pixels are not smaller than MS pixels.
    """
    headers = [read_file_header(path) for path in ms]
    dn_max = max(_DN_MAX.get(header.dtype, _DN_MAX_WIDE) for header in headers)
    generic = generic_contract(sum(header.band_count for header in headers), pixel_ratio(pan, ms[0]), dn_max)
    return generic.model_copy(update={"name": UNKNOWN_SENSOR, "platforms": (UNKNOWN_SENSOR,)})


def pixel_ratio(pan: Path, ms: Path) -> int:
    """MS over PAN pixel size, rounded; from the array sizes where the headers do not give comparable pixel sizes.

    Raises:
        InvalidSceneError: A file cannot be read, or PAN pixels are not smaller than MS pixels.
    """
    fine, coarse = read_file_header(pan), read_file_header(ms)
    if fine.pixel_size and coarse.pixel_size and fine.crs == coarse.crs:
        found = coarse.pixel_size / fine.pixel_size
    else:
        found = fine.shape_yx[1] / coarse.shape_yx[1]
    if round(found) < 2:
        raise InvalidSceneError(
            f"{pan} (PAN) and {ms} (MS): MS pixels are {found:.3g} times the PAN pixels, expected 2 or more; "
            "are PAN and MS swapped, or is the image sharpened already?"
        )
    return round(found)


def sharpen_pair(
    pan: Path,
    ms: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    sensor: str | None = None,
    method: Method | None = None,
    bands: Sequence[str] | None = None,
    georeference: Georeference | None = None,
    overwrite: bool = False,
    adapt: bool = False,
    on_progress: Progress = lambda _phase, _done, _total: None,
) -> SharpenedPair:
    """Sharpen one PAN file and its MS file(s) into the COG ``out``, which appears only when it is whole.

    Args:
        pan: One-band file with a georeference.
        ms: One multi-band file, or one file per band.
        out: The file to write; its folder must exist.
        settings: Weights, device, precision, block size and workers.
        sensor: Name of a sensor contract or platform; by default inferred from the files, else generic.
        method: By default what the contract allows: the network, or ``mtf-glp-fs`` where only that is justified.
        bands: MS bands in file order; by default as ``pancrafter.ingest`` finds them.
        georeference: Frame for files that have none.
        overwrite: Replace ``out`` if it exists.
        adapt: Adapt the network to this scene first (``pancrafter.adapt``), in bounded time.
        on_progress: Called whenever a part is finished.

    Raises:
        InvalidSceneError: An input is missing, unreadable, has no georeference or is not what the sensor delivers.
        GridMismatchError: PAN and MS do not lie on one another.
        ContractError: There is no such sensor.
        SinkError: ``out`` exists already, or cannot be written.
        WeightsError: The weights cannot be used.
    """
    started = time.perf_counter()
    _check_output(out, [pan, *ms], overwrite=overwrite)
    if method != "mtf-glp-fs":
        weights_sha256(settings.weights)  # a missing file is better known before the scene is read
    name, contracts = _contract(sensor, pan, ms, settings)
    with _scratch_beside(out) as scratch:
        on_progress("reading", 0, 1)
        added = add_pair(
            scratch / "catalog", name, pan, ms, bands=bands, georeference=georeference, contracts=contracts
        )
        body = json.loads(Path(added.item_path).read_text(encoding="utf-8"))
        scene = judge_document(body, added.item_path, contracts)
        assert isinstance(scene, Scene), scene
        contract = contracts[scene.sensor]
        chosen: Method = method or ("mtf-glp-fs" if contract.weights == "none" else "pan-crafter")
        with open_compute(settings) as compute:
            staged = _stage(scene, contract, scratch / "scene.zarr", settings, compute)
            on_progress("reading", 1, 1)
            spec = sharpener_spec(staged, settings, contract, fallback=chosen != "pan-crafter")
            adapted = None
            if adapt and chosen == "pan-crafter":
                spec, adapted = _adapt(spec, staged, contract, scratch, on_progress)
            seconds = _sharpen(staged, spec, compute, on_progress)
        changed = spec.glp is None and spec.weights != settings.weights
        size = _write(staged, contract, out, settings, chosen, on_progress, adapted=changed)
    rows, cols = staged.grid.pan.shape_yx
    return SharpenedPair(
        path=str(out),
        size_bytes=size,
        sensor=scene.sensor,
        method=chosen,
        adapted=adapted,
        bands=scene.bands,
        dtype=staged.dtype,
        shape_yx=(rows, cols),
        crs=staged.grid.pan.crs,
        ratio=staged.grid.ratio,
        largest_shift_px=max(max(abs(dy), abs(dx)) for dy, dx in staged.band_shift_yx),
        valid_share=staged.valid_share,
        mpx=rows * cols / 1e6,
        sharpen_seconds=seconds,
        seconds=time.perf_counter() - started,
    )


def _contract(
    sensor: str | None, pan: Path, ms: Sequence[Path], settings: Settings
) -> tuple[str, dict[str, SensorContract]]:
    """Name of the sensor to use, and the contracts to look it up in."""
    known = load_contracts(Path(settings.contracts_dir) if settings.contracts_dir else None)
    if sensor is not None and sensor != GENERIC:
        pixel_ratio(pan, ms[0])  # swapped files are better named than their wrong band count
        return sensor, known
    chosen = infer_contract(pan, ms, known) if sensor is None else contract_for_files(pan, ms)
    return chosen.name, {chosen.name: chosen} | known


def _check_output(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    if any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        raise SinkError(f"{out}: is one of the inputs; give the output a name of its own (it comes last)")
    if out.is_dir():
        raise SinkError(f"{out}: is a folder, expected the name of the file to write")
    if out.exists() and not overwrite:
        raise SinkError(f"{out}: exists already; choose another name or give --overwrite")
    if not out.absolute().parent.is_dir():
        raise SinkError(f"{out}: folder {out.absolute().parent} does not exist; make it first")


@contextmanager
def _scratch_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the disk of the output, removed with everything in it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as err:
        raise SinkError(f"{out}: its folder cannot be written ({err}); check rights and free space") from err
    try:
        yield folder
    finally:
        remove_folder(folder)


def _stage(scene: Scene, contract: SensorContract, store: Path, settings: Settings, compute: Compute) -> StagedScene:
    from pancrafter.cube import stage_scene

    with compute.active():
        return stage_scene(scene, contract, str(store), block_px=settings.block_px, reach_px=STAGING_REACH_PX)


def _adapt(
    spec: SharpenerSpec, staged: StagedScene, contract: SensorContract, scratch: Path, on_progress: Progress
) -> tuple[SharpenerSpec, str]:
    """The specification with a network adapted to the scene where that helps, and what came of it."""
    from pancrafter.adapt import adapt_to_scene
    from pancrafter.engine import band_mtf_gains
    from pancrafter.store import SceneStore

    on_progress("adapting", 0, 1)
    store = SceneStore.open(staged.store_uri)
    spec, done = adapt_to_scene(spec, store, band_mtf_gains(staged, contract), scratch / "adapted.safetensors")
    on_progress("adapting", 1, 1)
    kept = "adapted" if done.kept else "not adapted"
    return spec, f"{kept}: {done.reason} after {done.steps} steps, {done.seconds:.0f} s"


def _sharpen(staged: StagedScene, spec: SharpenerSpec, compute: Compute, on_progress: Progress) -> float:
    """Sharpen all blocks; seconds it took."""
    from pancrafter.store import SceneStore

    started = time.perf_counter()
    store = SceneStore.open(staged.store_uri, "r+")
    store.begin_sharpening("pair")
    done, total = 0, _pixels(staged)
    on_progress("sharpening", done, total)
    for block in compute.map(sharpen_block_task, store.pending_blocks(), staged.store_uri, spec, on_gpu=True):
        done += block.pixels
        on_progress("sharpening", done, total)
    return time.perf_counter() - started


def _write(
    staged: StagedScene,
    contract: SensorContract,
    out: Path,
    settings: Settings,
    method: Method,
    on_progress: Progress,
    *,
    adapted: bool,
) -> int:
    """Write the COG; its size in bytes."""
    from pancrafter.cog import write_cog
    from pancrafter.store import SceneStore

    written = write_cog(
        out,
        _blocks(SceneStore.open(staged.store_uri), on_progress),
        grid=staged.grid.pan,
        count=len(staged.scene.bands),
        dtype=staged.dtype,
        nodata=staged.nodata,
        band_names=staged.scene.bands,
        scale=staged.scale,
        offset=staged.offset,
        profile=settings.cog_profile,
        tags=_tags(contract, settings, method) | ({"PANCRAFTER_ADAPTED": "to this scene"} if adapted else {}),
        threads=os.cpu_count() or 1,
    )
    return written.size_bytes


def _tags(contract: SensorContract, settings: Settings, method: Method) -> dict[str, str]:
    """How the file was made, for its header."""
    tags = {
        "TIFFTAG_SOFTWARE": f"pancrafter {package_version('pancrafter')}",
        "PANCRAFTER_METHOD": method,
        "PANCRAFTER_SENSOR": contract.name,
    }
    if method == "pan-crafter":
        tags |= {
            "PANCRAFTER_WEIGHTS": Path(settings.weights).name,
            "PANCRAFTER_WEIGHTS_SHA256": weights_sha256(settings.weights),
        }
    return tags


def _blocks(store: SceneStore, on_progress: Progress) -> Iterator[CogBlock]:
    """The result block by block, saying how far the writing is."""
    written, total = 0, _pixels(store.staged)
    for block in image_blocks(store):
        yield block
        written += block.values.shape[1] * block.values.shape[2]
        on_progress("writing", written, total)


def _pixels(staged: StagedScene) -> int:
    rows, cols = staged.grid.pan.shape_yx
    return rows * cols
