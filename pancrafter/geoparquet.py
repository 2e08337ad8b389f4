"""STAC GeoParquet: the items of a file, or of all files of a folder, on disk, in S3 or at an address."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pancrafter.access import Access, reader_for, said_by
from pancrafter.crawl import is_local, local_path
from pancrafter.errors import SourceError

SUFFIXES = frozenset({".parquet", ".geoparquet"})


def is_geoparquet(name: str) -> bool:
    """Whether a file or folder is called like one."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def read_items(source: str, rules: Access) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address of its file, and item, of file after file; each is held as a whole.

    Raises:
        SourceError: There is no file, one cannot be read, or ``rustac`` is not installed.
    """
    address = None
    for address, place in _files(source, rules):
        yield from ((address, item) for item in _items(address, place))
    if address is None:
        raise SourceError(f"{source}: neither a file nor a folder of any; expected *.parquet or *.geoparquet")


def _files(source: str, rules: Access) -> Iterator[tuple[str, str]]:
    """Address of every file, and where rustac reads it: of S3 it knows neither profiles nor servers without TLS."""
    if is_local(source):
        path = local_path(source).absolute()
        names = (str(file) for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
        yield from ((name, name) for name in sorted(filter(is_geoparquet, names)))
    elif urlsplit(source).scheme == "s3":
        import fsspec

        with tempfile.TemporaryDirectory() as folder:
            copy = f"{folder}/items.parquet"
            try:
                store = fsspec.filesystem("s3", **reader_for(rules).object_options(source))
                # who may read a file need not be one who may list
                found = [source.removeprefix("s3://")] if store.isfile(source) else store.find(source)
                for name in sorted(filter(is_geoparquet, found)):
                    store.get_file(name, copy)
                    yield f"s3://{name}", copy
            except Exception as error:  # those of botocore have no class in common with others
                raise SourceError(f"{source}: {said_by(error)}; expected a STAC GeoParquet file") from error
    else:
        yield source, source


def _items(source: str, place: str) -> list[dict[str, Any]]:
    try:
        import rustac
    except ImportError as error:
        raise SourceError(f"{source}: GeoParquet needs rustac; install pancrafter[geoparquet]") from error
    try:
        features: list[dict[str, Any]] = rustac.read_sync(place, format="parquet", set_self_link=False)["features"]
    except Exception as error:  # rustac raises bare exceptions of its own
        raise SourceError(f"{source}: {said_by(error)}; expected a STAC GeoParquet file") from error
    for feature in features:
        if (feature.get("geometry") or {}).get("coordinates") == []:  # what rustac makes of none
            feature["geometry"] = None
    return features
