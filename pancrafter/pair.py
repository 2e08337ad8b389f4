"""Two files in, one sharpened COG out: a single scene through the staging, engine and COG code of the pipeline.

No catalog, ledger or quality gate: the pair is described in a temporary folder beside the output, which is gone
afterwards. What the headers say decides; where they do not name the sensor, a generic contract stands in.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from pancrafter.catalog import judge_document
from pancrafter.compute import Compute
from pancrafter.crawl import local_path
from pancrafter.errors import InvalidSceneError, PancrafterError, SinkError
from pancrafter.ingest import MS_KEY, PAN_KEY, USUAL_ORDER, add_pair
from pancrafter.model.names import SharpeningMethod, weights_sha256
from pancrafter.opening import READ_ERRORS
from pancrafter.recognise import RASTER_SUFFIXES
from pancrafter.scratch import remove_folder
from pancrafter.sensors import GENERIC, SensorContract, contract_for_platform, fold, generic_contract, load_contracts
from pancrafter.settings import Settings
from pancrafter.types import Record, Scene, StagedScene
from pancrafter.vendor_files import Georeference, image_bands
from pancrafter.version import code_version

if TYPE_CHECKING:
    from pancrafter.cog import Block as CogBlock
    from pancrafter.engine import Sharpener, SharpenerSpec
    from pancrafter.in_place import SceneFiles
    from pancrafter.store import SceneStore
    from pancrafter.tiles import ScenePixels

UNKNOWN_SENSOR = "unknown-sensor"
"""Name under which the generic contract is used for files of an unknown sensor."""

Phase = Literal["reading", "adapting", "sharpening", "writing"]
Progress = Callable[[Phase, int, int], None]
"""Takes what is being done, and how many of how many PAN pixels of it are finished."""

DEFAULT_MEMORY_BYTES = 2 * 2**30

_STAGING_THREAD_BYTES = 160 * 2**20
"""What a thread of staging takes: a shard with its surroundings while nodata is filled."""

_HELD_SHARE = 1 / 8
"""Of the memory, for the pixels of a small scene: it is read several times, for ranges, shifts, fits and sharpening."""

_REMOTE = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
_ELSEWHERE = tuple(f"{scheme}://" for scheme in ("http", "https", *_REMOTE))
_VIRTUAL = re.compile(r"^(/vsi[a-z0-9_]+/)+")

_DN_MAX = {"uint8": 255}
_DN_MAX_WIDE = 65535


class FileHeader(Record):
    """What the header of a raster file says that tells sensors and ratios apart."""

    path: str
    shape_yx: tuple[int, int]
    band_count: int
    """Bands of the image, without alpha."""
    has_alpha: bool
    descriptions: tuple[str, ...]
    """Of the bands of the image, empty where there is none."""
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
    method: SharpeningMethod
    adapted: str | None
    """Whether the network was adapted to the scene and why (not); None where it was not asked for."""
    bands: tuple[str, ...]
    assumed_order: tuple[str, ...] | None
    """The sensor's usual order of bands, where nothing says that the files of MS have it."""
    ms_alpha: bool
    """Whether a band of MS is alpha by its header: it said which pixels are valid."""
    dtype: str
    shape_yx: tuple[int, int]
    crs: str
    ratio: int
    largest_shift_px: float
    """Largest PAN-MS shift that was corrected, PAN pixels."""
    valid_share: float
    mpx: float
    window_px: int
    """Edge of the windows it was sharpened in, PAN pixels."""
    sharpen_seconds: float
    seconds: float

    @property
    def mpx_per_s(self) -> float:
        """Megapixels of PAN sharpened per second, reading beside it, staging and the COG's overviews left out."""
        return self.mpx / self.sharpen_seconds


def read_file_header(path: str | Path, named_count: int | None = None) -> FileHeader:
    """Size, type, pixel size and satellite of a raster file, without its pixels.

    ``named_count`` is for how many bands names are given: as ``image_bands`` takes it.

    Raises:
        InvalidSceneError: There is no such file, or it is no raster.
    """
    if "://" not in str(path) and not Path(path).is_file():
        found = "is a folder, expected one file" if Path(path).is_dir() else "no such file; check the path"
        raise InvalidSceneError(f"{path}: {found}")
    try:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning), rasterio.open(path) as source:
            placed = source.crs is not None and not source.transform.is_identity
            image = image_bands(source, named_count)
            return FileHeader(
                path=str(path),
                shape_yx=source.shape,
                band_count=len(image),
                has_alpha=len(image) < source.count,
                descriptions=tuple(source.descriptions[index - 1] or "" for index in image),
                dtype=source.dtypes[0],
                crs=source.crs.to_string() if placed else None,
                pixel_size=abs(source.transform.a) if placed else None,
                satellite=source.tags(ns="IMAGERY").get("SATELLITEID"),
            )
    except RasterioError as err:
        raise InvalidSceneError(
            f"{path}: not a readable raster ({err}); expected a GeoTIFF or another format that GDAL reads"
        ) from err


def infer_contract(
    pan: FileHeader, ms: Sequence[FileHeader], contracts: Mapping[str, SensorContract], bands: Sequence[str] | None
) -> SensorContract:
    """The contract of the satellite that the PAN header or file name names, else a generic one for these files.

    ``bands`` are the names given for the MS bands.

    Raises:
        InvalidSceneError: PAN pixels are not smaller than MS pixels, or names are not different.
    """
    generic, file_name = contract_for_files(pan, ms, bands), Path(pan.path).name
    named = contract_for_platform(pan.satellite, contracts) if pan.satellite else None
    known = named or next((c for c in contracts.values() if c.claims(file_name)), None)
    fits = known is not None and known.ratio == generic.ratio and known.delivery_of(len(generic.bands)) is not None
    return known if known is not None and fits else generic


def contract_for_files(pan: FileHeader, ms: Sequence[FileHeader], bands: Sequence[str] | None) -> SensorContract:
    """A generic contract with the band count, ratio and DN ceiling of these files: that of the widest type.

    Bands are called ``bands`` where these names are given, else as the files describe them, else by number.

    Raises:
        InvalidSceneError: PAN pixels are not smaller than MS pixels, or names are not different.
    """
    dn_max = max(_DN_MAX.get(header.dtype, _DN_MAX_WIDE) for header in (pan, *ms))
    count = sum(header.band_count for header in ms)
    generic = generic_contract(count, pixel_ratio(pan, ms[0]), dn_max, _band_names(ms, bands))
    return generic.model_copy(update={"name": UNKNOWN_SENSOR, "platforms": (UNKNOWN_SENSOR,)})


def _band_names(headers: Sequence[FileHeader], given: Sequence[str] | None) -> Sequence[str]:
    """Names for the bands of an unknown sensor, none where they can only be numbered."""
    described = [text for header in headers for text in header.descriptions]
    if given is None:
        return described if _tell_apart(described) else ()
    if not _tell_apart(given):
        raise InvalidSceneError(f"bands {', '.join(given)}: expected different names for MS bands, none of them 'pan'")
    return given if len(given) == len(described) else ()  # how many there should be is said where bands are assigned


def _tell_apart(names: Sequence[str]) -> bool:
    """Whether these may be names of MS bands: different, in spite of case and punctuation, and not PAN's."""
    folded = {fold(name) for name in names}
    return len(folded) == len(names) and folded.isdisjoint({"", fold(PAN_KEY)})


def pixel_ratio(pan: FileHeader, ms: FileHeader) -> int:
    """MS over PAN pixel size, rounded; from the array sizes where the headers do not give comparable pixel sizes.

    Raises:
        InvalidSceneError: PAN pixels are not smaller than MS pixels.
    """
    if pan.pixel_size and ms.pixel_size and pan.crs == ms.crs:
        found = ms.pixel_size / pan.pixel_size
    else:
        found = pan.shape_yx[1] / ms.shape_yx[1]
    if round(found) < 2:
        raise InvalidSceneError(
            f"{pan.path} (PAN) and {ms.path} (MS): MS pixels are {found:.3g} times the PAN pixels, expected 2 or more; "
            "are PAN and MS swapped, or is the image sharpened already?"
        )
    return round(found)


def sharpen_pair(
    pan: str | Path,
    ms: Sequence[str | Path],
    out: Path,
    settings: Settings,
    *,
    sensor: str | None = None,
    method: SharpeningMethod | None = None,
    bands: Sequence[str] | None = None,
    georeference: Georeference | None = None,
    overwrite: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    window_px: int | None = None,
    adapt: bool = False,
    on_progress: Progress = lambda _phase, _done, _total: None,
) -> SharpenedPair:
    """Sharpen one PAN file and its MS file(s) into the COG ``out``, which appears only when it is whole.

    Args:
        pan: One-band file with a georeference; anything GDAL reads, ``/vsi...`` paths and s3:// URLs too.
        ms: One multi-band file, or one file per band.
        out: The file to write; its folder must exist.
        settings: Weights, device, precision and threads.
        sensor: Name of a sensor contract or platform; by default inferred from the files, else generic.
        method: By default what the contract allows: the network, or ``mtf-glp-fs`` where only that is justified.
        bands: MS bands in file order; by default as ``pancrafter.ingest`` finds them.
        georeference: Frame for files that have none.
        overwrite: Replace ``out`` if it exists.
        memory_bytes: What the program may take; windows are chosen to fit.
        window_px: Edge of a window in PAN pixels, in place of the one that fits ``memory_bytes``.
        adapt: Adapt the network to this scene first (``pancrafter.adapt``), in bounded time.
        on_progress: Called whenever a part is finished.

    Raises:
        InvalidSceneError: An input is missing, unreadable, has no georeference or is not what the sensor delivers.
        GridMismatchError: PAN and MS do not lie on one another.
        ContractError: There is no such sensor.
        SinkError: ``out`` exists already, or cannot be written.
        WeightsError: The weights cannot be used.
        BandCountError: They take another number of bands.
        MemoryBudgetError: ``memory_bytes`` does not hold one window.
    """
    started = time.perf_counter()
    _check_output(out, [pan, *ms], overwrite=overwrite)
    inputs = _Inputs(pan, ms)
    if method in (None, "pan-crafter"):
        weights_sha256(settings.weights)  # a missing file is better known before the scene is read
    with _scratch_beside(out) as scratch, inputs.named():
        on_progress("reading", 0, 1)
        pan_path, *ms_paths = inputs.bring_to_hand(scratch)
        named_count = len(bands) if bands is not None and len(ms) == 1 else None
        pan_header = read_file_header(pan_path)
        ms_headers = [read_file_header(path, named_count) for path in ms_paths]
        name, contracts = _contract(sensor, pan_header, ms_headers, bands, settings)
        added = add_pair(
            scratch / "catalog",
            name,
            pan_path,
            ms_paths,
            bands=bands,
            georeference=georeference,
            contracts=contracts,
            checksums=False,
        )
        inputs.become_assets(added.bands)
        body = json.loads(Path(added.item_path).read_text(encoding="utf-8"))
        scene = judge_document(body, added.item_path, contracts)
        assert isinstance(scene, Scene), scene
        contract = contracts[scene.sensor]
        chosen: SharpeningMethod = method or ("mtf-glp-fs" if contract.weights == "none" else "pan-crafter")
        adapt = adapt and chosen == "pan-crafter"
        if chosen == "pan-crafter":
            count, longest_px = len(scene.bands), max(pan_header.shape_yx)
            _check_memory(contract.ratio, count, longest_px, settings, memory_bytes, window_px, adapting=adapt)
        pixels = _read(scene, contract, scratch / "scene.zarr", settings, memory_bytes)
        staged = pixels.staged
        on_progress("reading", 1, 1)
        spec = _fitted(pixels, contract, chosen, settings)
        adapted = None
        if adapt:
            spec, adapted = _adapt(spec, pixels, contract, scratch, on_progress)
        engine = _prepare(pixels, spec, memory_bytes, window_px, adapting=adapt)
        streamed = _Streamed(pixels, on_progress)
        tags = _tags(contract, settings, chosen)
        if spec.weights != settings.weights:
            tags["PANCRAFTER_ADAPTED"] = "to this scene"
        size = _write(staged, out, settings, streamed.blocks(engine), tags)
        on_progress("writing", 1, 1)
    rows, cols = staged.grid.pan.shape_yx
    return SharpenedPair(
        path=str(out),
        size_bytes=size,
        sensor=scene.sensor,
        method=chosen,
        adapted=adapted,
        bands=scene.bands,
        assumed_order=added.bands if added.bands_from == USUAL_ORDER and scene.sensor != UNKNOWN_SENSOR else None,
        ms_alpha=any(header.has_alpha for header in ms_headers),
        dtype=staged.dtype,
        shape_yx=(rows, cols),
        crs=staged.grid.pan.crs,
        ratio=staged.grid.ratio,
        largest_shift_px=max(max(abs(dy), abs(dx)) for dy, dx in staged.band_shift_yx),
        valid_share=staged.valid_share,
        mpx=rows * cols / 1e6,
        window_px=engine.window_px,
        sharpen_seconds=streamed.seconds,
        seconds=time.perf_counter() - started,
    )


class _Inputs:
    """The files of a pair as the caller names them: errors call them so, whatever stands for them meanwhile.

    Raises:
        InvalidSceneError: A file is given twice.
    """

    def __init__(self, pan: str | Path, ms: Sequence[str | Path]) -> None:
        self._names = [str(pan), *map(str, ms)]
        self._paths: list[Path] = []
        self._keys: list[str] = []
        repeated = next((name for name in self._names if self._names.count(name) > 1), None)
        if repeated is not None:
            raise InvalidSceneError(
                f"{repeated}: the same file is given twice; expected PAN and MS in files of their own"
            )

    def bring_to_hand(self, folder: Path) -> list[Path]:
        """What stands for each file, PAN first."""
        self._paths = [_at_hand(name, folder / str(number)) for number, name in enumerate(self._names, start=1)]
        return self._paths

    def become_assets(self, bands: Sequence[str]) -> None:
        """From now on errors call the files by their keys in an item; ``bands`` are in the order of the files."""
        self._keys = [PAN_KEY, *([MS_KEY] if len(self._names) == 2 else bands)]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Have errors say which file it is."""
        try:
            yield
        except PancrafterError as err:
            told = self._told(err)
            if told == str(err):
                raise
            raise type(err)(told) from err

    def _told(self, err: PancrafterError) -> str:
        text = err.message
        for path, name in zip(self._paths, self._names, strict=False):
            text = text.replace(str(path), name)
        if err.asset is None:
            return text
        known = dict(zip(self._keys, self._names, strict=False))
        return " and ".join(known.get(key, key) for key in err.asset.split(" and ")) + f": {text}"


def _at_hand(path: str | Path, folder: Path) -> Path:
    """A local TIFF or the like that stands for ``path``: itself, a link to a local VRT, else a VRT of that name."""
    scheme, separator, rest = str(path).partition("://")
    if scheme == "file":
        return _at_hand(rest, folder)
    source = str(path)
    if separator:
        source = f"/vsicurl/{path}" if scheme in ("http", "https") else _REMOTE.get(scheme, f"{scheme}://") + rest
    elif not source.startswith("/vsi"):
        if Path(path).suffix.lower() in RASTER_SUFFIXES or not Path(path).is_file():
            return Path(path)
        source = str(Path(path).absolute())
    local = folder / f"{Path(source.partition('?')[0]).stem}.tif"
    folder.mkdir()
    if Path(source).suffix.lower() == ".vrt" and Path(source).is_file():  # a copy loses its way to the mask
        local.symlink_to(Path(source).resolve())
        return local
    try:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            rasterio.shutil.copy(source, local, driver="VRT")
            with rasterio.open(source) as found, rasterio.open(local, "r+") as stand_in:
                stand_in.update_tags(ns="IMAGERY", **found.tags(ns="IMAGERY"))
    except (RasterioError, CPLE_BaseError) as err:
        elsewhere = separator or str(path).startswith("/vsi")
        advice = "check the address, network and credentials" if elsewhere else "expected an image that GDAL reads"
        raise InvalidSceneError(f"{path}: cannot be read ({err}); {advice}") from err
    return local


def _contract(
    sensor: str | None, pan: FileHeader, ms: Sequence[FileHeader], bands: Sequence[str] | None, settings: Settings
) -> tuple[str, dict[str, SensorContract]]:
    """Name of the sensor to use, and the contracts to look it up in."""
    known = load_contracts(Path(settings.contracts_dir) if settings.contracts_dir else None)
    if sensor is not None and sensor != GENERIC:
        pixel_ratio(pan, ms[0])  # swapped files are better named than their wrong band count
        return sensor, known
    chosen = infer_contract(pan, ms, known, bands) if sensor is None else contract_for_files(pan, ms, bands)
    return chosen.name, {chosen.name: chosen} | known


def _check_output(out: Path, inputs: Sequence[str | Path], *, overwrite: bool) -> None:
    if out.exists() and any(out.samefile(path) for source in inputs for path in _files_behind(source)):
        raise SinkError(f"{out}: is one of the inputs; give the output a name of its own (it comes last)")
    if out.exists() and not out.is_file():
        kind = "a folder" if out.is_dir() else "no regular file"
        raise SinkError(f"{out}: is {kind}, expected the name of the file to write")
    if out.exists() and not overwrite:
        raise SinkError(f"{out}: exists already; choose another name or give --overwrite")
    if not out.absolute().parent.is_dir():
        raise SinkError(f"{out}: folder {out.absolute().parent} does not exist; make it first")


def _files_behind(source: str | Path) -> Iterator[Path]:
    """The local files that hold an input: also what a VRT names, and the archive that a file is read from."""
    if str(source).startswith(_ELSEWHERE):
        return
    names = [str(local_path(str(source)))]
    with (
        suppress(*READ_ERRORS),
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(source) as dataset,
    ):
        names += dataset.files
    for name in names:
        path = Path(_VIRTUAL.sub("", name).translate({ord("{"): None, ord("}"): None}))
        yield from (part for part in (path, *path.parents) if part.is_file())


@contextmanager
def _scratch_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the disk of the output, removed with everything in it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as err:
        raise SinkError(f"{out}: its folder cannot be written ({err}); check rights and free space") from err
    try:
        yield folder
    except BaseException:
        remove_folder(folder)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _check_memory(
    ratio: int,
    bands: int,
    longest_px: int,
    settings: Settings,
    memory_bytes: int,
    window_px: int | None,
    *,
    adapting: bool,
) -> None:
    """Find out before the scene is read that the network does not fit; band shifts of up to an MS pixel included."""
    from pancrafter.engine import NetworkSharpener
    from pancrafter.model.weights import load_checkpoint
    from pancrafter.resample import GENERIC_MTF_GAIN, Mtf
    from pancrafter.stream import Layout, fitting_window_px

    # As in the run, but for the scene's own constants, which take no memory.
    sharpener = NetworkSharpener(
        load_checkpoint(settings.weights), "cpu", settings.precision, relative_mtf=(Mtf(GENERIC_MTF_GAIN),) * bands
    )
    halo_px = sharpener.reach_px(ratio, [((ratio - 1) / 2,) * 2]) + ratio
    fitting_window_px(sharpener, Layout(bands, ratio, longest_px, halo_px, adapting), memory_bytes, window_px)


def _read(
    scene: Scene, contract: SensorContract, store: Path, settings: Settings, memory_bytes: int
) -> SceneFiles | SceneStore:
    """The scene's pixels where they lie, or staged: what lies elsewhere, or is slow to decode, is read only once."""
    from pancrafter.cube import PAIR_BLOCK_PX, REACH_PX, stage_scene
    from pancrafter.in_place import read_in_place
    from pancrafter.store import SceneStore
    from pancrafter.stream import PROGRAM_BYTES

    fitting = max(1, (memory_bytes - PROGRAM_BYTES) // _STAGING_THREAD_BYTES)
    with Compute(threads=min(settings.threads, fitting)).active():
        found = read_in_place(
            scene,
            contract,
            block_px=PAIR_BLOCK_PX,
            reach_px=REACH_PX,
            hold_bytes=int(_HELD_SHARE * memory_bytes),
        )
        if found is not None:
            return found
        stage_scene(scene, contract, str(store), block_px=PAIR_BLOCK_PX, reach_px=REACH_PX)
    return SceneStore.open(str(store))


def _fitted(
    pixels: ScenePixels, contract: SensorContract, method: SharpeningMethod, settings: Settings
) -> SharpenerSpec:
    from pancrafter.engine import fit_sharpener

    return fit_sharpener(
        pixels,
        contract,
        method,
        weights=settings.weights,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
    )


def _adapt(
    spec: SharpenerSpec, pixels: ScenePixels, contract: SensorContract, scratch: Path, on_progress: Progress
) -> tuple[SharpenerSpec, str]:
    """The specification with a network adapted to the scene where that helps, and what came of it."""
    from pancrafter.adapt import adapt_to_scene
    from pancrafter.engine import scene_mtfs

    on_progress("adapting", 0, 1)
    mtfs = scene_mtfs(pixels.staged, contract)
    with ThreadPoolExecutor(1) as own:  # so that torch's threads for it end with it, see docs/decisions/0034
        spec, done = own.submit(adapt_to_scene, spec, pixels, mtfs, scratch / "adapted.safetensors").result()
    on_progress("adapting", 1, 1)
    kept = "adapted" if done.kept else "not adapted"
    return spec, f"{kept}: {done.reason} after {done.steps} steps, {done.seconds:.0f} s"


@dataclass(frozen=True, eq=False)
class _Engine:
    sharpener: Sharpener
    window_px: int


def _prepare(
    pixels: SceneFiles | SceneStore, spec: SharpenerSpec, memory_bytes: int, window_px: int | None, *, adapting: bool
) -> _Engine:
    from pancrafter.engine import build_sharpener
    from pancrafter.in_place import SceneFiles
    from pancrafter.stream import Layout, fitting_window_px, needed_bytes

    sharpener = build_sharpener(spec)
    layout = Layout.of(pixels.staged, sharpener, adapting=adapting)
    chosen = fitting_window_px(sharpener, layout, memory_bytes, window_px)
    if isinstance(pixels, SceneFiles) and needed_bytes(sharpener, layout, chosen) + pixels.held_bytes > memory_bytes:
        pixels.let_go()  # large windows gain more
    return _Engine(sharpener, chosen)


class _Streamed:
    """Hands finished windows to the writer and says how far they are."""

    def __init__(self, pixels: ScenePixels, on_progress: Progress) -> None:
        self._pixels = pixels
        self._on_progress = on_progress
        self.seconds = 0.0

    def blocks(self, engine: _Engine) -> Generator[CogBlock]:
        from pancrafter.cog import Block as CogBlock
        from pancrafter.stream import sharpened_windows

        started = time.perf_counter()
        done, total = 0, math.prod(self._pixels.pan_shape_yx)
        self._on_progress("sharpening", done, total)
        windows = sharpened_windows(self._pixels, engine.sharpener, engine.window_px)
        with closing(windows):
            for part in windows:
                yield CogBlock(part.window, part.values.astype(self._pixels.staged.dtype, copy=False), part.valid)
                done += part.valid.size
                self._on_progress("sharpening", done, total)
        self.seconds = time.perf_counter() - started
        self._on_progress("writing", 0, 1)


def _write(
    staged: StagedScene,
    out: Path,
    settings: Settings,
    blocks: Generator[CogBlock],
    tags: dict[str, str],
) -> int:
    """Write the COG; its size in bytes."""
    from pancrafter.cog import write_cog

    with closing(blocks):
        written = write_cog(
            out,
            blocks,
            grid=staged.grid.pan,
            count=len(staged.scene.bands),
            dtype=staged.dtype,
            nodata=staged.nodata,
            band_names=staged.scene.bands,
            scale=staged.scale,
            offset=staged.offset,
            profile=settings.cog_profile,
            tags=tags,
            threads=settings.threads,
        )
    return written.size_bytes


def _tags(contract: SensorContract, settings: Settings, method: SharpeningMethod) -> dict[str, str]:
    """How the file was made, for its header."""
    tags = {
        "TIFFTAG_SOFTWARE": f"pancrafter {code_version()}",
        "PANCRAFTER_METHOD": method,
        "PANCRAFTER_SENSOR": contract.name,
    }
    if method == "pan-crafter":
        tags |= {
            "PANCRAFTER_WEIGHTS": Path(settings.weights).name,
            "PANCRAFTER_WEIGHTS_SHA256": weights_sha256(settings.weights),
        }
    return tags
