"""Files of the PanCollection benchmark: patches to train on, and the scenes of its published tables.

HDF5 files hold ``ms`` (n, band, y, x), ``pan`` (n, 1, 4y, 4x), ``gt`` (n, band, 4y, 4x) where there is a truth, and
``lms``, which nothing here needs: it is ``metrics.poly_upsample`` of ``ms``. Files named ``.mat`` hold one test scene
each with the bands last. Low-pass PAN is always computed from PAN, because some shipped files hold that of others.

The benchmark samples MS at index 2 of every four PAN pixels. Real products are edge-aligned (1.5), so weights trained
here belong to the benchmark, not to production. Low-pass PAN is sampled at 1.5 here too, where shipped arrays are
sampled at 2: brought back from there it lies on PAN either way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from pancrafter.errors import InvalidSceneError, PancrafterError
from pancrafter.metrics import Float64s, mtf_kernel
from pancrafter.pairs import Pair, Unreadable, require_within_ceiling

Floats = NDArray[np.float32]

RATIO = 4
PHASE_PX = 2.0
"""PAN index of MS pixel 0: every fourth pixel, beginning at the third."""


@dataclass(frozen=True)
class BenchmarkSensor:
    """The constants under which a sensor's published figures were computed, whatever its contract says today."""

    contract: str
    dn_max: int
    mtf_gains: tuple[float, ...]
    bands: tuple[str, ...]


_EIGHT = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir1", "nir2")
_FOUR = ("blue", "green", "red", "nir")
SENSORS = {
    "wv3": BenchmarkSensor("worldview-3", 2047, (0.325, 0.355, 0.360, 0.350, 0.365, 0.360, 0.335, 0.315), _EIGHT),
    "wv2": BenchmarkSensor("worldview-2", 2047, (0.35,) * 7 + (0.27,), _EIGHT),
    "qb": BenchmarkSensor("quickbird", 2047, (0.34, 0.32, 0.30, 0.22), _FOUR),
    "gf2": BenchmarkSensor("gaofen-2", 1023, (0.30,) * 4, _FOUR),
}
"""Gains at Nyquist of the DLPan toolbox, with which the data were made; names are those in the files' names."""

SHIFTED_MS = frozenset({"qb"})
"""Sets whose training files hold ``ms`` shifted by one MS pixel in about two thirds of the patches."""

_SUFFIXES = frozenset({".h5", ".hdf5", ".mat"})
_MAT_NAMES = {"ms": ("ms", "I_MS_LR"), "pan": ("pan", "I_PAN"), "gt": ("gt", "I_GT")}
_REBUILD_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Patches:
    """Training patches of one file in DN: ``pan`` (n, 4y, 4x), ``ms`` (n, band, y, x), ``truth`` (n, band, 4y, 4x)."""

    name: str
    sensor: BenchmarkSensor
    pan: Floats
    ms: Floats
    truth: Floats
    rebuilt: int
    """How many patches held an ``ms`` that is not their truth seen by the sensor, and got another one."""


def is_pancollection(path: Path) -> bool:
    """Whether ``path`` is an HDF5 or mat file, or a folder with such files and no npz pairs."""
    if path.is_dir():
        return any(p.suffix in _SUFFIXES for p in path.iterdir()) and not any(path.glob("*.npz"))
    return path.is_file() and path.suffix in _SUFFIXES


def sensor_of(path: Path, name: str | None = None) -> tuple[str, BenchmarkSensor]:
    """The benchmark sensor called ``name``, or the one that the file name holds.

    Raises:
        InvalidSceneError: Neither says one.
    """
    folded = path.stem.casefold()
    found = name if name is not None else next((key for key in SENSORS if key in folded), None)
    if found not in SENSORS:
        raise InvalidSceneError(f"{path}: sensor is {found!r}, expected one of {', '.join(SENSORS)}; give --sensor")
    return found, SENSORS[found]


def read_test_pairs(path: Path, sensor: str | None = None) -> Iterator[Pair | Unreadable]:
    """The test scenes of a file or of all files in a folder; those with a truth are reduced-resolution ones."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
    for file in files:
        try:
            yield from _file_pairs(file, sensor)
        except PancrafterError as err:
            yield Unreadable(file.name, str(err))


def _file_pairs(path: Path, sensor: str | None) -> Iterator[Pair]:
    _, constants = sensor_of(path, sensor)
    arrays = _read_mat(path) if path.suffix == ".mat" else _read_h5(path)
    _check(path, arrays, constants)
    truth, count = arrays.get("gt"), len(arrays["ms"])
    for index in range(count):
        yield Pair(
            name=path.stem if count == 1 else f"{path.stem}[{index}]",
            sensor=constants.contract,
            bands=constants.bands,
            pan=arrays["pan"][index],
            ms=arrays["ms"][index],
            ratio=RATIO,
            phases_yx=((PHASE_PX, PHASE_PX),) * len(constants.bands),
            nominal_gains=constants.mtf_gains,
            pan_gain=1.0,
            dn_max=constants.dn_max,
            truth=None if truth is None else truth[index],
            protocol="benchmark",
        )


def read_patches(path: Path, sensor: str | None = None) -> Patches:
    """All training or validation patches of a file; where the set is known to be defective, ``ms`` is made afresh.

    Raises:
        InvalidSceneError: The file is damaged, has no truth, or its arrays contradict each other or the sensor.
    """
    name, constants = sensor_of(path, sensor)
    arrays = _read_h5(path)
    _check(path, arrays, constants)
    if "gt" not in arrays:
        raise InvalidSceneError(f"{path}: holds no gt; training needs files with a truth, such as train_{name}.h5")
    ms, rebuilt = arrays["ms"], 0
    if name in SHIFTED_MS:
        made = rebuild_ms(arrays["gt"], constants)
        inner = np.abs(made - ms)[:, :, 3:-3, 3:-3]
        rebuilt = int((inner.mean(axis=(1, 2, 3)) > 1.0).sum())
        ms = made
    return Patches(path.name, constants, arrays["pan"], ms, arrays["gt"], rebuilt)


def joined(parts: Sequence[Patches]) -> Patches:
    """Patches of several files of one sensor as one set.

    Raises:
        InvalidSceneError: They are of different sensors.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.sensor != first.sensor for part in parts):
        raise InvalidSceneError(f"{', '.join(part.name for part in parts)}: of different sensors; train one at a time")
    pan, ms, truth = (np.concatenate([getattr(part, field) for part in parts]) for field in ("pan", "ms", "truth"))
    name = "+".join(part.name for part in parts)
    return Patches(name, first.sensor, pan, ms, truth, sum(part.rebuilt for part in parts))


def rebuild_ms(truth: Floats, sensor: BenchmarkSensor) -> Floats:
    """``ms`` as the benchmark made it: (n, band, 4y, 4x) blurred by the sensor's MTF, every fourth pixel from 2 on."""
    kernels = np.stack([mtf_kernel(gain, RATIO) for gain in sensor.mtf_gains])[None]
    first = int(PHASE_PX)
    made = [
        _blurred(truth[start : start + _REBUILD_AT_ONCE], kernels)[:, :, first::RATIO, first::RATIO]
        for start in range(0, len(truth), _REBUILD_AT_ONCE)
    ]
    return np.concatenate(made).astype(np.float32)


def _blurred(images: Floats, kernels: Float64s) -> Float64s:
    half = kernels.shape[-1] // 2
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (half, half), (half, half)), mode="edge")
    blurred: Float64s = signal.fftconvolve(padded, kernels, mode="valid", axes=(2, 3))
    return blurred


def _read_h5(path: Path) -> dict[str, Floats]:
    try:
        import h5py
    except ImportError as err:
        raise PancrafterError(
            f"{path}: reading HDF5 needs h5py, which is not installed; pip install 'pancrafter[benchmark]'"
        ) from err
    try:
        with h5py.File(path) as file:
            arrays = {name: file[name][...].astype(np.float32) for name in ("pan", "ms", "gt") if name in file}
    except (OSError, KeyError, ValueError, TypeError) as err:
        raise InvalidSceneError(f"{path}: not a readable HDF5 file ({err}); fetch it again") from err
    if "pan" in arrays and arrays["pan"].ndim == 4 and arrays["pan"].shape[1] == 1:
        arrays["pan"] = arrays["pan"][:, 0]
    return arrays


def _read_mat(path: Path) -> dict[str, Floats]:
    """One scene, with a leading axis of one like the HDF5 files."""
    try:
        content: dict[str, Any] = loadmat(path)
    except (OSError, ValueError, NotImplementedError, TypeError, MatReadError) as err:
        raise InvalidSceneError(f"{path}: not a readable mat file ({err}); fetch it again") from err
    arrays: dict[str, Floats] = {}
    for name, spellings in _MAT_NAMES.items():
        found = next((content[spelling] for spelling in spellings if spelling in content), None)
        if found is not None:
            axes = found if found.ndim == 2 else np.moveaxis(found, -1, 0)
            arrays[name] = np.asarray(axes, np.float32)[None]
    return arrays


def _check(path: Path, arrays: dict[str, Floats], sensor: BenchmarkSensor) -> None:
    missing = [name for name in ("pan", "ms") if name not in arrays]
    if missing:
        raise InvalidSceneError(f"{path}: {' and '.join(missing)} missing; expected a PanCollection file")
    pan, ms = arrays["pan"], arrays["ms"]
    wanted = (len(ms), len(sensor.bands), *(n // RATIO for n in pan.shape[1:]))
    if ms.ndim != 4 or pan.ndim != 3 or ms.shape != wanted or any(n % RATIO for n in pan.shape[1:]):
        raise InvalidSceneError(
            f"{path}: pan is {pan.shape} and ms {ms.shape}; expected (n, 1, 4y, 4x) and (n, {len(sensor.bands)}, y, x) "
            f"of {sensor.contract}; give --sensor if it is another one"
        )
    if not len(ms):
        raise InvalidSceneError(f"{path}: holds no patches, pan is {pan.shape}; fetch the file again, or leave it out")
    if "gt" in arrays and arrays["gt"].shape != (*ms.shape[:2], *pan.shape[1:]):
        raise InvalidSceneError(f"{path}: gt is {arrays['gt'].shape}, expected {(*ms.shape[:2], *pan.shape[1:])}")
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise InvalidSceneError(f"{path}: {name} holds values that are not finite; fetch the file again")
        require_within_ceiling(f"{path}: {name}", values, sensor.dn_max)
        if values.max(initial=0) <= 1:
            raise InvalidSceneError(f"{path}: {name} lies between 0 and 1; expected DN up to {sensor.dn_max}")
