"""Lays compressed tiles out as a Cloud Optimized GeoTIFF.

GDAL writes the description of the file (georeference, names, statistics, tags) into a GeoTIFF without pixels; here its
tags are taken over and the tiles are put behind them in the order of GDAL's COG layout: all directories, then the tiles
from the smallest overview to the full resolution, each between its length and its last four bytes once more, so that a
reader needs no second look into the header (https://gdal.org/en/stable/drivers/raster/cog.html, "Format details").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pancrafter.pyramid import TILE_PX, Level, Place, Spool

CLASSIC_LIMIT = 2**32 - 2**20
"""Bytes up to which a file is a classic TIFF with offsets of 32 bits; larger ones are BigTIFF."""

TILE_MARGIN_BYTES = 8
"""Between two tiles: the last bytes of the first once more, and the length of the second."""

_LAYOUT = (
    "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    "BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
_MASKED_LAYOUT = _LAYOUT + "MASK_INTERLEAVED_WITH_IMAGERY=YES\n"

_KIND_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SHORT, _LONG, _LONG8 = 3, 4, 16

_NEW_SUBFILE_TYPE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_SAMPLES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _OFFSETS, _BYTE_COUNTS = 277, 284, 317, 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _NODATA = 338, 339, 42113
_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType."""
_MASK_PHOTOMETRIC, _ZSTD = 4, 50000

_OF_OVERVIEWS = {
    _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_LENGTH, _EXTRA_SAMPLES,
    _SAMPLE_FORMAT, _NODATA,
}  # fmt: skip
"""Tags that describe the pixels of every resolution; the others describe the file."""


class Tag(NamedTuple):
    """One entry of a TIFF directory; ``content`` is little endian."""

    code: int
    kind: int
    content: bytes


@dataclass
class _Directory:
    """One image of the file: its tags and tiles, row by row."""

    tags: list[Tag]
    places: list[Place]
    offsets: list[int] = field(default_factory=list)
    """Where the tiles lie in the file."""


def tags_of(content: bytes) -> list[Tag]:
    """The tags of the first directory of a little-endian BigTIFF, except where its tiles are.

    Raises:
        ValueError: It is something else.
    """
    magic, version, width, _, start = struct.unpack_from("<2sHHHQ", content)
    if (magic, version, width) != (b"II", 43, 8):
        raise ValueError("expected a little-endian BigTIFF")
    (count,) = struct.unpack_from("<Q", content, start)
    tags = []
    for number in range(count):
        at = start + 8 + 20 * number
        code, kind, length = struct.unpack_from("<HHQ", content, at)
        size = length * _KIND_BYTES[kind]
        where = at + 12 if size <= 8 else struct.unpack_from("<Q", content, at + 12)[0]
        if code not in (_OFFSETS, _BYTE_COUNTS):
            tags.append(Tag(code, kind, content[where : where + size]))
    return tags


def write_tiles(path: Path, levels: Sequence[Level], spool: Spool, described: list[Tag], whole: Place) -> None:
    """Write the file, from the last tile of the spool to the first: it is given back to the disk as the file grows.

    Args:
        path: It must not exist.
        levels: Full resolution first; every tile has its place in the spool.
        spool: Where the compressed tiles are.
        described: Tags of the full resolution.
        whole: The compressed mask of a tile without holes. Masks are written where any tile has one.

    Raises:
        OSError: The file cannot be written.
    """
    masked = bool(levels[0].mask)
    images = [_image(level, described, overview=number > 0) for number, level in enumerate(levels)]
    masks = []
    if masked:
        masks = [_mask(level, whole, overview=number > 0) for number, level in enumerate(levels)]
    directories = [one for pair in zip(images, masks, strict=True) for one in pair] if masked else images
    tiles = [
        together
        for number in reversed(range(len(levels)))
        for together in _tiles_of(images[number], masks[number] if masked else None)
    ]
    size = sum(place.size + TILE_MARGIN_BYTES for _, place in tiles)
    big = len(_header(directories, big=True, masked=masked)) + size > CLASSIC_LIMIT
    end = len(_header(directories, big=big, masked=masked))
    laid = []
    for directory, place in tiles:
        directory.offsets.append(end + 4)
        laid.append((end, place))
        end += place.size + TILE_MARGIN_BYTES
    with path.open("xb") as sink:
        sink.write(_header(directories, big=big, masked=masked))
        for start, place in sorted(laid, key=lambda tile: tile[1].offset, reverse=True):
            spool.shrink(place.offset + place.size)
            sink.seek(start)
            sink.write(struct.pack("<I", place.size))
            spool.copy(place, sink)
            sink.write(spool.last_bytes(place))


def _image(level: Level, described: list[Tag], *, overview: bool) -> _Directory:
    rows, cols = level.shape_yx
    own = [_number(_WIDTH, _LONG, cols), _number(_LENGTH, _LONG, rows)]
    if overview:
        own.append(_number(_NEW_SUBFILE_TYPE, _LONG, _REDUCED))
    taken = {tag.code for tag in own}
    kept = [tag for tag in described if tag.code not in taken and (not overview or tag.code in _OF_OVERVIEWS)]
    return _Directory(own + kept, [level.image[index] for index in level.indices()])


def _mask(level: Level, whole: Place, *, overview: bool) -> _Directory:
    rows, cols = level.shape_yx
    shorts = {
        _BITS: 1, _COMPRESSION: _ZSTD, _PHOTOMETRIC: _MASK_PHOTOMETRIC, _SAMPLES: 1, _PLANAR: 1,
        _TILE_WIDTH: TILE_PX, _TILE_LENGTH: TILE_PX, _SAMPLE_FORMAT: 1,
    }  # fmt: skip
    longs = {_NEW_SUBFILE_TYPE: _MASK | (_REDUCED if overview else 0), _WIDTH: cols, _LENGTH: rows}
    tags = [_number(code, _SHORT, value) for code, value in shorts.items()]
    tags += [_number(code, _LONG, value) for code, value in longs.items()]
    return _Directory(tags, [level.mask.get(index, whole) for index in level.indices()])


def _number(code: int, kind: int, value: int) -> Tag:
    return Tag(code, kind, value.to_bytes(_KIND_BYTES[kind], "little"))


def _tiles_of(image: _Directory, mask: _Directory | None) -> Iterator[tuple[_Directory, Place]]:
    """Tiles of one resolution in the order of the file: row by row, each with its mask behind it."""
    for number, place in enumerate(image.places):
        yield image, place
        if mask is not None:
            yield mask, mask.places[number]


def _header(directories: list[_Directory], *, big: bool, masked: bool) -> bytes:
    """Everything before the first tile; of the same length whether or not the offsets of tiles are known yet.

    The lists of tiles come after all directories, which a reader gets with its first request that way.
    """
    first = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0)
    layout = (_MASKED_LAYOUT if masked else _LAYOUT).encode()
    head = bytearray(first + f"GDAL_STRUCTURAL_METADATA_SIZE={len(layout):06d} bytes\n".encode() + layout)
    lists: list[tuple[int, bytes]] = []
    pointer = len(first) - (8 if big else 4)
    for directory in directories:
        _pad(head)
        _put(head, pointer, len(head), big=big)
        pointer = _add_directory(head, directory, lists, big=big)
    for entry, content in lists:
        _pad(head)
        _put(head, entry, len(head), big=big)
        head += content
    _pad(head)
    return bytes(head)


def _add_directory(head: bytearray, directory: _Directory, lists: list[tuple[int, bytes]], *, big: bool) -> int:
    """Append a directory and its longer values; where the offset of the next one belongs."""
    offsets = directory.offsets or [0] * len(directory.places)
    tags = [
        *directory.tags,
        Tag(_OFFSETS, _LONG8 if big else _LONG, np.array(offsets, "<u8" if big else "<u4").tobytes()),
        Tag(_BYTE_COUNTS, _LONG, np.array([place.size for place in directory.places], "<u4").tobytes()),
    ]
    tags.sort(key=lambda tag: tag.code)
    room = 8 if big else 4
    head += struct.pack("<Q" if big else "<H", len(tags))
    entries = len(head)
    entry_bytes = 4 + 2 * room
    head += bytes(entry_bytes * len(tags) + room)
    for number, tag in enumerate(tags):
        at = entries + entry_bytes * number
        count = len(tag.content) // _KIND_BYTES[tag.kind]
        struct.pack_into("<HHQ" if big else "<HHI", head, at, tag.code, tag.kind, count)
        value = at + 4 + room
        if len(tag.content) <= room:
            head[value : value + len(tag.content)] = tag.content
        elif tag.code in (_OFFSETS, _BYTE_COUNTS):
            lists.append((value, tag.content))
        else:
            _pad(head)
            _put(head, value, len(head), big=big)
            head += tag.content
    return entries + entry_bytes * len(tags)


def _put(head: bytearray, at: int, offset: int, *, big: bool) -> None:
    struct.pack_into("<Q" if big else "<I", head, at, offset)


def _pad(head: bytearray) -> None:
    """To an even length, as directories and values must begin; GDAL's own check accepts no larger gap."""
    head += bytes(-len(head) % 2)
