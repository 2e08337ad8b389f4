"""What the engine costs: the model, the engine without a model, reading and writing, and all of it, side by side.

Every measure runs in a process of its own, so that its peak memory is its own. Wall and CPU time are both given: on a
shared machine only the latter means something. Run through ``pancrafter bench``.
"""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pancrafter.classical import InjectionConstants
from pancrafter.heap import keep_freed_memory
from pancrafter.model.names import DEFAULT_WEIGHTS, weights_sha256
from pancrafter.resample import Mtf
from pancrafter.types import PixelGrid, Record, StagedScene
from pancrafter.version import code_commit, code_version

if TYPE_CHECKING:
    import torch

    from pancrafter.engine import NetworkSharpener
    from pancrafter.store import Window
    from pancrafter.tiles import Tile

BANDS, RATIO = 4, 4
_TEXTURE_PX = 512
_WARM_UP_PX = 512
_INJECTION = InjectionConstants(weights=(0.25,) * BANDS, offset=0.0, gains=(0.5,) * BANDS, explained=0.9)
_RELATIVE_MTF = (Mtf(0.33),) * BANDS
_PHASES = (((RATIO - 1) / 2,) * 2,) * BANDS
_LIBRARIES = ("torch", "numpy", "rasterio", "zarr", "dask", "rio-cogeo")


class Measure(Record):
    """One measurement. Rates are PAN megapixels of the result, all bands."""

    name: str
    mpx: float
    wall_s: float
    cpu_s: float
    mpx_per_s: float
    mpx_per_cpu_s: float
    peak_mib: float
    """Largest resident memory of the process."""
    grown_mib: float
    """How much of it came with the work itself."""
    details: dict[str, float | str] = Field(default_factory=dict)


class Report(Record):
    """A run of the benchmark."""

    commit: str
    machine: str
    cores: int
    device: str
    python: str
    versions: dict[str, str]
    threads: int
    measures: tuple[Measure, ...]
    not_installed: tuple[str, ...] = ()
    """Measures of programs that this machine does not have."""
    ratios: dict[str, float]


def run(
    names: tuple[str, ...], sizes: tuple[int, ...], *, device: str, threads: int, repeat: int, memory: str,
    on_measure: Callable[[Measure], None],
) -> Report:  # fmt: skip
    """Measure each of ``names`` (see ``MEASURES``), those that need a scene at every size (PAN pixels per side)."""
    measures: list[Measure] = []
    missing: list[str] = []
    with tempfile.TemporaryDirectory(prefix="pancrafter-bench-") as folder:
        for name in names:
            for size in sizes if MEASURES[name].needs_scene else (0,):
                setting = Setting(
                    name=name, size=size, device=device, threads=threads, repeat=repeat, folder=folder, memory=memory
                )
                measure = _in_own_process(setting)
                if measure is None:
                    missing.append(name)
                    break
                measures.append(measure)
                on_measure(measure)
    return Report(
        commit=code_commit() or f"release {code_version()}",
        machine=_machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        device=_device_name(device),
        python=platform.python_version(),
        versions={name: version(name) for name in _LIBRARIES},
        threads=threads,
        measures=tuple(measures),
        not_installed=tuple(missing),
        ratios=_ratios(measures),
    )


def _in_own_process(setting: Setting) -> Measure | None:
    environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads)}
    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-m", "pancrafter.benchmark", setting.model_dump_json()],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"benchmark {setting.name} failed:\n{done.stderr}")
    line = done.stdout.strip().splitlines()[-1]
    return None if line == "null" else Measure.model_validate_json(line)


def _ratios(measures: list[Measure]) -> dict[str, float]:
    """The comparisons that matter: speeds of the model by CPU time, wall time of everything that overlaps."""
    by_name: dict[str, list[Measure]] = {}
    for measure in measures:
        by_name.setdefault(measure.name, []).append(measure)
    found = {}
    for title, slow, fast in (
        ("model over reference, speed", "model-reference", "model"),
        ("bfloat16 over float32, speed", "model", "model-bfloat16"),
    ):
        if slow in by_name and fast in by_name:
            found[title] = by_name[fast][-1].mpx_per_cpu_s / by_name[slow][-1].mpx_per_cpu_s
    for title, mine, other in (
        ("engine over I/O", "engine", "io"),
        ("end to end over the network alone", "end-to-end", "model-windows"),
        ("brovey over gdal_pansharpen to COG", "brovey", "gdal-pansharpen-cog"),
        ("brovey over gdal_pansharpen to GeoTIFF", "brovey", "gdal-pansharpen"),
        ("brovey over Orfeo ToolBox", "brovey", "orfeo"),
    ):
        pairs = zip(by_name.get(mine, []), by_name.get(other, []), strict=False)
        found |= {f"{title}, time, {_edge(a)} px": a.wall_s / b.wall_s for a, b in pairs}
    if "model" in by_name and "model-reference" in by_name:
        found["model over reference, memory"] = by_name["model"][0].grown_mib / by_name["model-reference"][0].grown_mib
    for name in ("end-to-end", "engine", "brovey", "exp"):
        if len(scenes := by_name.get(name, [])) > 1:
            found[f"{name}, cost per pixel of largest over smallest"] = scenes[0].mpx_per_s / scenes[-1].mpx_per_s
            found[f"{name}, memory of largest over smallest"] = scenes[-1].peak_mib / scenes[0].peak_mib
    return found


def _edge(measure: Measure) -> int:
    return math.isqrt(round(measure.mpx * 1e6))


# --- what is measured -----------------------------------------------------------------------------------------------


class Setting(Record):
    """What a measuring process is told."""

    name: str
    size: int
    device: str
    threads: int
    repeat: int
    folder: str
    memory: str


def model(setting: Setting, *, reference: bool = False, precision: str = "float32") -> Measure:
    """One 512 px block of four bands with its halo: conditions, network, MS put back and to DN."""
    import torch

    torch.set_num_threads(setting.threads)
    sharpener = _sharpener(setting, precision)
    tile, core = _tile(512, sharpener.reach_px(RATIO, _PHASES))
    runner = plainly(sharpener) if reference else sharpener
    return _timed(setting, lambda: runner(tile, core), 512**2 / 1e6, precision=precision)


def model_windows(setting: Setting) -> Measure:
    """The network on as many windows as the scene has, of the size that the memory allows: what cannot be hidden."""
    from pancrafter.options import parse_size
    from pancrafter.stream import Layout, choose_window_px

    sharpener = _sharpener(setting)
    halo_px = sharpener.reach_px(RATIO, _PHASES)
    layout = Layout(BANDS, RATIO, setting.size, halo_px)
    edge = min(choose_window_px(sharpener, layout, parse_size("--memory", setting.memory)), setting.size)
    tile, core = _tile(edge, halo_px)

    def work() -> None:
        for _ in range((-(-setting.size // edge)) ** 2):
            sharpener(tile, core)

    once = setting.model_copy(update={"repeat": 1})
    return _timed(once, work, setting.size**2 / 1e6, warm_up=False, window_px=float(edge))


def _sharpener(setting: Setting, precision: str = "float32") -> NetworkSharpener:
    """The shipped network as the engine builds it, told of a scene."""
    from pancrafter.engine import NetworkSharpener, SharpenerSpec, build_sharpener

    spec = SharpenerSpec(
        weights=DEFAULT_WEIGHTS, weights_sha256=weights_sha256(DEFAULT_WEIGHTS), device=setting.device,
        precision=precision, threads=setting.threads, injection=_INJECTION, relative_mtf=_RELATIVE_MTF,
    )  # fmt: skip
    sharpener = build_sharpener(spec)
    assert isinstance(sharpener, NetworkSharpener)
    return sharpener


def plainly(sharpener: NetworkSharpener) -> Callable[[Tile, Window], NDArray[np.float32]]:
    """What a sharpener does, by the plain network: eager, float32, channels first, unfolded attention, whole tiles."""
    import torch

    from pancrafter.engine import to_dn
    from pancrafter.model import layers
    from pancrafter.store import whole_window

    layers.local_attention = unfold_attention
    network = sharpener.checkpoint.network.to(sharpener.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.stem.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    mode = torch.zeros(1, dtype=torch.long, device=sharpener.device)

    def run(tile: Tile, core: Window) -> NDArray[np.float32]:
        whole = whole_window(tile.pan.shape)
        with torch.inference_mode():
            given = torch.cat([network(conditions, mode) for conditions in sharpener.conditions(tile)])
            bands = [to_dn(made, tile.ms_ranges[part]) for part, made in sharpener.finished(given, tile, whole)]
            found: NDArray[np.float32] = torch.cat(bands)[:, *core].cpu().numpy()
        return found

    return run


def unfold_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Local attention as it is usually written, with nine copies of keys and values."""
    import torch
    from torch.nn.functional import unfold

    n, c, height, width = query.shape
    q = query.reshape(n, heads, c // heads, 1, height * width) * (c // heads) ** -0.5
    keys, values = (unfold(x.contiguous(), 3, padding=1).reshape(n, heads, c // heads, 9, -1) for x in (key, value))
    weights = (q * keys).sum(2, keepdim=True).softmax(3)
    return torch.einsum("nhokp,nhckp->nhcp", weights, values).reshape(n, c, height, width)


def io(setting: Setting) -> Measure:
    """Every input window read once, and as many bytes as a result has written as a COG."""
    from rasterio import open as open_raster
    from rasterio.windows import Window as RasterWindow

    from pancrafter.cog import Block, write_cog
    from pancrafter.store import cut_windows

    pan_path, ms_path = _scene(setting)
    out = Path(setting.folder) / "io.tif"

    def blocks() -> Iterator[Block]:
        with open_raster(pan_path) as pan, open_raster(ms_path) as ms:
            for rows, cols in cut_windows((setting.size, setting.size), 1024):
                shape = (rows.stop - rows.start, cols.stop - cols.start)
                detail = pan.read(1, window=RasterWindow(cols.start, rows.start, shape[1], shape[0])) // 8
                place = RasterWindow(cols.start // RATIO, rows.start // RATIO, shape[1] // RATIO, shape[0] // RATIO)
                values = ms.read(window=place).repeat(RATIO, 1).repeat(RATIO, 2)
                yield Block((rows, cols), values + detail)

    def work() -> None:
        write_cog(
            out, blocks(), grid=_grid(setting.size, 0.5), count=BANDS, dtype="uint16", nodata=None,
            band_names=[f"b{b}" for b in range(BANDS)], threads=setting.threads,
        )  # fmt: skip

    return _timed(setting, work, setting.size**2 / 1e6)


class Identity:
    """A sharpener without a model: every MS pixel repeated, plus a little PAN, or the result would cost no disk."""

    @property
    def method(self) -> str:
        """``identity``."""
        return "identity"

    @property
    def rows_at_once(self) -> int:
        """As for the textbook methods."""
        from pancrafter.tiles import STRIP_ROWS

        return STRIP_ROWS

    def halo_px(self, staged: StagedScene) -> int:  # noqa: ARG002  # as the protocol has it
        """As much as the shipped network asks for."""
        return 115

    def working_bytes(self, tile_px: int, core_px: int, bands: int) -> int:
        """The repeated bands."""
        return 4 * bands * (tile_px + core_px)

    def __call__(self, tile: Tile, core: Window | None = None) -> NDArray[np.float32]:
        """Repeat the pixels of MS, a row of them at a time: what takes the place of a model must not cost much."""
        rows, cols = core or (slice(0, tile.pan.shape[0]), slice(0, tile.pan.shape[1]))
        made = np.empty((len(tile.ms), rows.stop - rows.start, cols.stop - cols.start), np.float32)
        for y in range(rows.start, rows.stop):
            above = tile.ms[:, y // tile.ratio].repeat(tile.ratio, 1)[:, cols]
            np.add(above, tile.pan[y, cols] * np.float32(1 / 8), out=made[:, y - rows.start])
        return made


def engine(setting: Setting) -> Measure:
    """``pancrafter sharpen`` with a model that costs nothing: staging, windows, COG."""
    import pancrafter.engine as engine_module

    engine_module.build_sharpener = lambda _: Identity()  # type: ignore[assignment]
    return end_to_end(setting, method="exp")


def end_to_end(setting: Setting, *, method: str | None = None, precision: str = "float32") -> Measure:
    """Files in, COG out, as the command does it; after a small scene, which takes the imports and ``first_s``."""
    from pancrafter.options import parse_size
    from pancrafter.pair import sharpen_pair
    from pancrafter.settings import Settings

    out = Path(setting.folder) / f"{setting.name}.tif"
    settings = Settings.model_validate({"threads": setting.threads, "device": setting.device, "precision": precision})
    made: dict[str, float | str] = {"memory": setting.memory}

    def work(files: tuple[Path, Path]) -> None:
        pan, ms = files
        pair = sharpen_pair(
            pan, [ms], out, settings, sensor="generic", method=method or "pan-crafter",  # type: ignore[arg-type]
            overwrite=True, memory_bytes=parse_size("--memory", setting.memory),
        )  # fmt: skip
        made.update(window_px=float(pair.window_px), sharpen_s=round(pair.sharpen_seconds, 2))

    small, files = _scene(setting.model_copy(update={"size": _WARM_UP_PX})), _scene(setting)
    started = time.perf_counter()
    work(small)
    made["first_s"] = round(time.perf_counter() - started, 2)
    once = setting if method else setting.model_copy(update={"repeat": 1})
    measure = _timed(once, lambda: work(files), setting.size**2 / 1e6, warm_up=False)
    return measure.model_copy(update={"details": made})


def gdal_pansharpen(setting: Setting, *, cog: bool) -> Measure | None:
    """GDAL's own weighted Brovey on the same files and threads; None where it is not installed."""
    script = shutil.which("gdal_pansharpen.py") or shutil.which("gdal_pansharpen")
    if script is None:
        return None
    pan, ms = _scene(setting)
    out = Path(setting.folder) / "gdal.tif"
    options = ["-co", "COMPRESS=ZSTD", "-co", "PREDICTOR=2", "-co", "LEVEL=1" if cog else "ZSTD_LEVEL=1"]
    options += ["-of", "COG", "-co", f"NUM_THREADS={setting.threads}"] if cog else ["-co", "TILED=YES"]
    options += ["-co", "BLOCKSIZE=512"] if cog else ["-co", f"NUM_THREADS={setting.threads}"]
    command = [script, "-q", "-threads", str(setting.threads), *options, str(pan), str(ms), str(out)]

    def work() -> None:
        out.unlink(missing_ok=True)
        subprocess.run(  # noqa: S603  # the command of GDAL
            command, check=True, capture_output=True, env=_system_environment()
        )

    return _timed(setting, work, setting.size**2 / 1e6, warm_up=False)


def orfeo(setting: Setting) -> Measure | None:
    """Orfeo ToolBox's BundleToPerfectSensor on the same files and threads; None where it is not installed.

    It writes a tiled, compressed GeoTIFF without overviews: the nearest to the same product that it can.
    """
    command = shutil.which("otbcli_BundleToPerfectSensor")
    if command is None:
        return None
    pan, ms = _scene(setting)
    out = Path(setting.folder) / "orfeo.tif"
    options = "gdal:co:TILED=YES&gdal:co:COMPRESS=ZSTD&gdal:co:ZSTD_LEVEL=1&gdal:co:PREDICTOR=2"
    options += f"&gdal:co:BLOCKXSIZE=512&gdal:co:BLOCKYSIZE=512&gdal:co:NUM_THREADS={setting.threads}"
    words = [command, "-inp", str(pan), "-inxs", str(ms), "-out", f"{out}?&{options}", "uint16", "-ram", "512"]

    def work() -> None:
        out.unlink(missing_ok=True)
        threads = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(setting.threads)}
        subprocess.run(  # noqa: S603  # the command of Orfeo ToolBox
            words, check=True, capture_output=True, env=_system_environment() | threads
        )

    once = setting.model_copy(update={"repeat": 1})
    return _timed(once, work, setting.size**2 / 1e6, warm_up=False)


def _system_environment() -> dict[str, str]:
    """That of this process without its virtual environment, for programs of the system that run on its Python."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return clean | {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def roofline(setting: Setting) -> Measure:
    """Matrix product and copy rate of the device, and what share of them the model reaches."""
    import torch

    device, n = setting.device, 8192 if setting.device.startswith("cuda") else 1024
    torch.set_num_threads(setting.threads)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    product_s = _seconds(lambda: a @ a, setting)
    big = torch.empty(2**28 if device.startswith("cuda") else 2**26, device=device)
    copy_s = _seconds(big.clone, setting)
    edge = 2048 if device.startswith("cuda") else 512
    sharpener = _sharpener(setting, "bfloat16")
    tile, core = _tile(edge, sharpener.reach_px(RATIO, _PHASES))
    flops = BANDS * _flops_per_px() * edge**2
    with torch.inference_mode():
        conditions = sharpener._conditions(tile)  # noqa: SLF001  # the stage apart
        region = tuple((part.start, part.stop) for part in core)
        network = sharpener._network  # noqa: SLF001  # the stage apart
        stages = {
            "conditions_s": _seconds(lambda: sharpener._conditions(tile), setting),  # noqa: SLF001
            "network_s": _seconds(lambda: network(conditions, region), setting),  # type: ignore[arg-type]
        }
    peak, copied = 2 * n**3 / product_s, 2 * big.nbytes / copy_s
    measure = _timed(setting, lambda: sharpener(tile, core), edge**2 / 1e6)
    details: dict[str, float | str] = {
        "matrix_tflops": peak / 1e12,
        "copy_gb_per_s": copied / 1e9,
        "network_tflops": flops / stages["network_s"] / 1e12,
        "share_of_matrix_peak": flops / stages["network_s"] / peak,
        "share_of_copy": tile.pan.nbytes * (1 + BANDS) / stages["conditions_s"] / copied,
        **stages,
    }
    if device.startswith("cuda"):
        details["device_peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return measure.model_copy(update={"details": details})


def _flops_per_px() -> float:
    """Floating point operations of the shipped network per PAN pixel and band, counted by torch on the plain pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pancrafter.model.conditions import build_conditions
    from pancrafter.model.weights import load_checkpoint

    network = load_checkpoint().network
    bands = network.config.bands
    detail = torch.zeros(1, bands, 64, 64) if network.config.injected_detail else None
    phases = torch.full((1, bands, 2), 1.5, dtype=torch.float64)
    conditions = build_conditions(torch.zeros(1, 1, 64, 64), torch.zeros(1, bands, 16, 16), RATIO, phases, detail)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(conditions, torch.zeros(1, dtype=torch.long))
    return float(counter.get_total_flops()) / 64**2 / bands


@dataclass(frozen=True)
class _Entry:
    what: str
    measure: Callable[[Setting], Measure | None]
    needs_scene: bool = True


MEASURES = {
    "model-reference": _Entry(
        "plain float32 network, channels first, unfolded attention", partial(model, reference=True), needs_scene=False
    ),
    "model": _Entry("the engine's forward pass, float32", model, needs_scene=False),
    "model-bfloat16": _Entry(
        "the engine's forward pass, bfloat16", partial(model, precision="bfloat16"), needs_scene=False
    ),
    "roofline": _Entry("matrix and copy rate of the device, and the share reached", roofline, needs_scene=False),
    "model-windows": _Entry("the network alone, on the windows of the scene", model_windows),
    "io": _Entry("reading the inputs and writing a COG, nothing else", io),
    "engine": _Entry("pancrafter sharpen with a model that costs nothing", engine),
    "end-to-end": _Entry("pancrafter sharpen", end_to_end),
    "end-to-end-bfloat16": _Entry("pancrafter sharpen --precision bfloat16", partial(end_to_end, precision="bfloat16")),
    "exp": _Entry("pancrafter sharpen --method exp", partial(end_to_end, method="exp")),
    "brovey": _Entry("pancrafter sharpen --method brovey", partial(end_to_end, method="brovey")),
    "gdal-pansharpen": _Entry(
        "gdal_pansharpen to a tiled GeoTIFF without overviews", partial(gdal_pansharpen, cog=False)
    ),
    "gdal-pansharpen-cog": _Entry("gdal_pansharpen to a COG", partial(gdal_pansharpen, cog=True)),
    "orfeo": _Entry("Orfeo ToolBox's BundleToPerfectSensor to a tiled GeoTIFF", orfeo),
}
"""What is measured, and how: each in a process of its own."""


# --- clocks ---------------------------------------------------------------------------------------------------------


def _timed(
    setting: Setting, work: Callable[[], object], mpx: float, *, warm_up: bool = True, **details: float | str
) -> Measure:
    """Best of ``repeat`` runs by CPU time, with the wall time of the quickest."""
    before = _peak_mib()
    if warm_up:
        work()
    walls, cpus = [], []
    for _ in range(setting.repeat):
        cpu, wall = _cpu_s(), time.perf_counter()
        work()
        _settle(setting.device)
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu_s() - cpu)
    peak = _peak_mib()
    return Measure(
        name=setting.name,
        mpx=mpx,
        wall_s=min(walls),
        cpu_s=min(cpus),
        mpx_per_s=mpx / min(walls),
        mpx_per_cpu_s=mpx / min(cpus),
        peak_mib=peak,
        grown_mib=peak - before,
        details=details,
    )


def _seconds(work: Callable[[], object], setting: Setting) -> float:
    """Quickest of ``repeat`` runs, wall clock."""
    work()
    found = []
    for _ in range(setting.repeat):
        _settle(setting.device)
        started = time.perf_counter()
        work()
        _settle(setting.device)
        found.append(time.perf_counter() - started)
    return min(found)


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def _cpu_s() -> float:
    """CPU time of this process and its finished children, finer than the ticks of ``os.times``."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _peak_mib() -> float:
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(own, children) / 1024


# --- inputs ---------------------------------------------------------------------------------------------------------


def _tile(core_px: int, halo_px: int) -> tuple[Tile, Window]:
    from pancrafter.tiles import Tile
    from pancrafter.types import ValueRange

    step = -(-halo_px // 4) * 4
    edge, generator = core_px + 2 * step, np.random.default_rng(0)
    tile = Tile(
        pan=generator.uniform(100, 2000, (edge, edge)).astype(np.float32),
        ms=generator.uniform(100, 2000, (BANDS, edge // RATIO, edge // RATIO)).astype(np.float32),
        ratio=RATIO,
        phases_yx=_PHASES,
        pan_range=ValueRange(low=100, high=2000),
        ms_ranges=(ValueRange(low=100, high=2000),) * BANDS,
    )
    return tile, (slice(step, step + core_px), slice(step, step + core_px))


def _scene(setting: Setting) -> tuple[Path, Path]:
    """PAN and MS files of a size, made when first asked for; a texture with noise, so that it compresses like one."""
    from pancrafter.cog import Block, write_cog
    from pancrafter.store import cut_windows

    folder, size = Path(setting.folder), setting.size
    paths = folder / f"pan-{size}.tif", folder / f"ms-{size}.tif"
    generator = np.random.default_rng(0)
    texture = _texture(generator)
    for path, edge, pitch, gains in zip(
        paths, (size, size // RATIO), (1, RATIO), ((1.0,), (0.6, 0.8, 0.9, 1.1)), strict=True
    ):
        if path.exists():
            continue

        def blocks(edge: int = edge, pitch: int = pitch, gains: tuple[float, ...] = gains) -> Iterator[Block]:
            for rows, cols in cut_windows((edge, edge), 512):
                y, x = (np.arange(part.start, part.stop) * pitch % _TEXTURE_PX for part in (rows, cols))
                plane = texture[np.ix_(y, x)]
                noisy = [plane * gain + generator.normal(0, 4, plane.shape) for gain in gains]
                yield Block((rows, cols), np.stack(noisy).clip(1, 2047).astype(np.uint16))

        write_cog(
            path, blocks(), grid=_grid(edge, 0.5 * pitch), count=len(gains), dtype="uint16", nodata=None,
            band_names=[f"b{b}" for b in range(len(gains))],
        )  # fmt: skip
    return paths


def _texture(generator: np.random.Generator) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    noise = generator.normal(size=(_TEXTURE_PX, _TEXTURE_PX))
    fields = sum(gaussian_filter(noise, sigma, mode="wrap") * sigma for sigma in (1.5, 5, 15))
    image: NDArray[np.float64] = 800 + 200 * fields / np.std(fields)
    return image


def _grid(edge: int, gsd: float) -> PixelGrid:
    return PixelGrid(crs="EPSG:32633", transform=(gsd, 0, 500_000, 0, -gsd, 4_000_000), shape_yx=(edge, edge))


# --- where it ran ---------------------------------------------------------------------------------------------------


def _machine() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


if __name__ == "__main__":
    keep_freed_memory()  # as the command does
    told = Setting.model_validate_json(sys.argv[1])
    result = MEASURES[told.name].measure(told)
    print("null" if result is None else result.model_dump_json())  # noqa: T201  # read by ``run``
