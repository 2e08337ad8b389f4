"""Opening source files: with what options and credentials, and what an error of reading them means."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from pancrafter.access import OPEN_TO_ALL, Access, reader_for, without_secrets
from pancrafter.errors import InvalidSceneError, TransientReadError

# Windows are read once, so a small block cache does (bytes here; the default is 5 % of the machine). Dask's threads
# already use every core.
GDAL_OPTIONS: dict[str, Any] = {"GDAL_NUM_THREADS": 1, "GDAL_CACHEMAX": 64 * 2**20}  # Any: rasterio is untyped

# A file elsewhere has no side files worth asking for, and a server that hangs must not hold a worker.
_REMOTE_OPTIONS: dict[str, Any] = {  # Any: rasterio is untyped
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
    # Else GDAL knows sizes, contents and failures of addresses for as long as the process lives: a file that was
    # replaced would give its old pixels, and one that a server refused once would stay refused.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/",
}
_PLAIN_DRIVERS = {".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG", ".img": "HFA", ".ntf": "NITF"}
"""Formats, by suffix (else GeoTIFF), of what catalogs name: none can refer to further files or hosts, as VRT does."""

PLAIN_FORMATS = frozenset({"GTiff", *_PLAIN_DRIVERS.values()})
"""All of these."""

_TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

READ_ERRORS = (RasterioError, CPLE_BaseError, OSError, UnicodeDecodeError)
"""What rasterio raises on files it cannot read; the last where a CRS is named in no known encoding."""

_NOT_RECOGNIZED = "not recognized as being in a supported file format"
_GONE = (
    "HTTP response code: 404",
    "HTTP response code: 410",
    "The specified key does not exist",
    "The specified bucket does not exist",
    "NoSuchKey",
    "NoSuchBucket",
)
"""How servers say that there is no such file, which trying again does not change."""
_MISSING = ("No such file or directory", "does not exist", "Permission denied")
T = TypeVar("T")


class Handle(NamedTuple):
    """An open dataset, the GDAL options it must be read with, and the lock under which it is opened and closed."""

    dataset: Any  # Any: rasterio is untyped
    options: dict[str, Any]  # Any: GDAL options of several types
    lock: AbstractContextManager[Any] = nullcontext()

    def close(self) -> None:
        """Close the dataset."""
        with self.lock:
            self.dataset.close()


def open_source(href: str, access: Access, scene: str, asset: str) -> Handle:
    """Open a file under the access rules: as one of a few plain formats, unless the user named it himself."""
    try:
        opened = reader_for(access).open(href)
    except (InvalidSceneError, TransientReadError) as err:
        raise type(err)(err.message, scene=scene, asset=asset) from None
    remote = "://" in opened.href and not opened.href.startswith("file:")
    options = opened.options | (_REMOTE_OPTIONS if remote else {})
    path = unquote(urlsplit(opened.href).path) if opened.href.startswith("file:") else opened.href
    with rasterio.Env(**GDAL_OPTIONS, **options):
        if not remote:
            if access == OPEN_TO_ALL:
                return Handle(rasterio.open(path, sharing=False), options)
            if mask := _strange_mask(Path(path)):
                advice = "expected a GeoTIFF, as others may refer to further files and hosts; convert or remove it"
                raise InvalidSceneError(f"its mask is {mask}; {advice}", scene=scene, asset=asset)
            return Handle(rasterio.open(path, sharing=False, driver=_plain_driver(path)), options)
        lock = _lock_of(path)
        with lock:
            dataset = rasterio.open(path, sharing=False, driver=_plain_driver(path))
            _ = dataset.mask_flag_enums
            return Handle(dataset, options, lock)


def _strange_mask(path: Path) -> Path | None:
    """The side file that GDAL would take for the mask of a local file, whatever its format, if it is no TIFF."""
    for side in path.parent.glob("*.[mM][sS][kK]"):
        if side.name.casefold() == f"{path.name}.msk".casefold():
            with side.open("rb") as file:
                if file.read(4) not in _TIFF_BEGINNINGS:
                    return side
    return None


@lru_cache(maxsize=1024)
def _lock_of(_path: str) -> threading.Lock:
    """Held while a thread opens a remote file and reads all of its header, and while one closes it.

    Either makes GDAL forget what it knows of the address. What of the header another thread had not looked at yet, it
    would fetch later, inside ``read``, where rasterio holds Python's lock: no other thread could go on until the
    server has answered.
    """
    return threading.Lock()


def _plain_driver(href: str) -> str:
    return _PLAIN_DRIVERS.get(PurePosixPath(urlsplit(href).path).suffix.casefold(), "GTiff")


def signed_anew(
    action: Callable[[], T], href: str, access: Access, *, before_again: Callable[[], None] | None = None
) -> T:
    """The result of ``action``; if it fails on a file that is read with a signature, once more with a new one."""
    try:
        return action()
    except READ_ERRORS:
        if not reader_for(access).forget(href):
            raise
    if before_again is not None:
        before_again()
    return action()


def read_failure(
    err: Exception, scene: str, asset: str, href: str, *, what: str
) -> InvalidSceneError | TransientReadError:
    """A remote file that answered badly may do better next time; a local or unreadable one will not.

    The text holds what GDAL said, without the signature of the address. ``err`` itself must not be chained: GDAL's
    exceptions cannot be pickled, and Dask would hand the scheduler a plain Exception in place of an error that has one
    in its chain.
    """
    parts = (str(part) for part in (err, err.__cause__) if part is not None)
    said = " / ".join(dict.fromkeys(without_secrets(part) for part in parts))
    remote = "://" in href and not href.startswith("file://")
    if remote and not any(mark in said for mark in (_NOT_RECOGNIZED, *_GONE)):
        advice = "check network and credentials, then try again"
        return TransientReadError(f"{what} cannot be read: {said}; {advice}", scene=scene, asset=asset)
    if any(mark in said for mark in _GONE):
        advice = "there is no such file; check the asset's href"
    elif any(mark in said for mark in _MISSING):
        advice = "check the asset's href and permissions"
    elif _NOT_RECOGNIZED in said:
        advice = "expected a GeoTIFF or another raster that GDAL reads; fetch the file again"
    else:
        advice = "the file is truncated or damaged; fetch it again"
    return InvalidSceneError(f"{what} cannot be read: {said}; {advice}", scene=scene, asset=asset)
