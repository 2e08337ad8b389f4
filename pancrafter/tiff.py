"""Turns a tiled TIFF into a Cloud Optimized one without decoding a pixel: directories first, then tiles in COG order.

GDAL writes the tiles compressed as they come, and its overviews after them; a second encoding just to move them would
cost more than all else about the file. The layout is that of GDAL's COG driver (COG specification, structural
metadata, block leaders and trailers: https://gdal.org/drivers/raster/cog.html). TIFF 6.0, and BigTIFF.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

_CLASSIC, _BIG = 42, 43
_NEW_SUBFILE_TYPE, _WIDTH, _HEIGHT, _TILE_OFFSETS, _TILE_BYTE_COUNTS = 254, 256, 257, 324, 325
_STRIP_OFFSETS = 273
_SUB_IFDS = 330
_MASK = 4
_SHORT, _LONG, _LONG8 = 3, 4, 16
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
_MOST_DIRECTORIES = 128
_FORMATS = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}

_STRUCTURE = (
    "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    "BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
"""What readers may rely on; the space at the end lets GDAL turn NO into YES when it edits the file."""


class TiffLayoutError(ValueError):
    """A file is not what GDAL writes when asked for a tiled TIFF: another kind of file, or one that was cut short."""


@dataclass(frozen=True)
class _Flavour:
    """How numbers are written: byte order, and classic (32-bit offsets) or BigTIFF (64-bit)."""

    order: str
    big: bool

    @property
    def offset_size(self) -> int:
        return 8 if self.big else 4

    @property
    def offset_type(self) -> int:
        return _LONG8 if self.big else _LONG

    def pack(self, fmt: str, *values: int) -> bytes:
        return struct.pack(self.order + fmt, *values)

    def offset(self, value: int) -> bytes:
        return self.pack("Q" if self.big else "I", value)

    def offset_in(self, data: bytes) -> int:
        return int.from_bytes(data[: self.offset_size], "little" if self.order == "<" else "big")

    def header(self, first_directory: int) -> bytes:
        magic = b"II" if self.order == "<" else b"MM"
        rest = self.pack("HHH", _BIG, 8, 0) if self.big else self.pack("H", _CLASSIC)
        return magic + rest + self.offset(first_directory)


@dataclass(frozen=True)
class _Field:
    kind: int
    count: int
    data: bytes


@dataclass(frozen=True)
class _Directory:
    """One image of the file: its fields by tag, and where its tiles lie."""

    fields: dict[int, _Field]
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    subfile_type: int
    pixels: int


def arrange_as_cog(source: Path, target: Path) -> None:
    """Write ``target`` with the images, tiles and fields of ``source``, in the order of a Cloud Optimized GeoTIFF.

    Args:
        source: A tiled TIFF with overviews and masks as GDAL writes them, in any order.
        target: The file to write; replaced if it exists.

    Raises:
        TiffLayoutError: ``source`` is no tiled TIFF, or a part of it is missing.
        OSError: Reading or writing failed.
    """
    with source.open("rb") as old, target.open("wb") as new:
        flavour, directories = _read_directories(old)
        # The image comes first and its overviews by falling size, each with its mask behind it.
        ordered = sorted(directories, key=lambda d: (-d.pixels, d.subfile_type & _MASK))
        sizes = [_directory_size(directory, flavour) for directory in ordered]
        structure = f"GDAL_STRUCTURAL_METADATA_SIZE={len(_STRUCTURE):06d} bytes\n{_STRUCTURE}".encode()
        start = _even(len(flavour.header(0)) + len(structure))
        new.seek(start + sum(sizes))
        # Tiles lie the other way round: whoever reads a file's first bytes has its directories and smallest overviews.
        moved = {id(directory): _copy_tiles(old, new, directory) for directory in reversed(ordered)}
        new.seek(0)
        new.write(flavour.header(start) + structure)
        for number, (directory, size) in enumerate(zip(ordered, sizes, strict=True)):
            following = start + size if number + 1 < len(ordered) else 0
            new.seek(start)
            new.write(_directory_bytes(directory, moved[id(directory)], start, following, flavour))
            start += size


# --- reading --------------------------------------------------------------------------------------------------------


def _read_directories(file: BinaryIO) -> tuple[_Flavour, list[_Directory]]:
    head = _read(file, 0, 8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    magic = 0 if order is None else struct.unpack_from(order + "H", head, 2)[0]
    if order is None or magic not in (_CLASSIC, _BIG):
        raise TiffLayoutError(f"{file.name}: starts with {head[:4]!r}, expected a TIFF")
    flavour = _Flavour(order, magic == _BIG)
    place = flavour.offset_in(_read(file, 0, 16)[8:] if flavour.big else head[4:])
    directories: list[_Directory] = []
    while place:
        if len(directories) == _MOST_DIRECTORIES:
            raise TiffLayoutError(f"{file.name}: its directories form a ring")
        directory, place = _read_directory(file, place, flavour)
        directories.append(directory)
    return flavour, directories


def _read_directory(file: BinaryIO, place: int, flavour: _Flavour) -> tuple[_Directory, int]:
    """A directory, and where the next one lies."""
    count_format, entry_size = ("Q", 20) if flavour.big else ("H", 12)
    count_size = struct.calcsize(count_format)
    (count,) = struct.unpack(flavour.order + count_format, _read(file, place, count_size))
    body = _read(file, place + count_size, count * entry_size + flavour.offset_size)
    fields = {}
    for number in range(count):
        entry = body[number * entry_size : (number + 1) * entry_size]
        tag, kind, length = struct.unpack_from(flavour.order + ("HHQ" if flavour.big else "HHI"), entry)
        fields[tag] = _Field(kind, length, _value(file, kind, length, entry[-flavour.offset_size :], flavour))
    for tag, problem in ((_STRIP_OFFSETS, "strips"), (_SUB_IFDS, "directories within directories")):
        if tag in fields:
            raise TiffLayoutError(f"{file.name}: holds {problem}, expected tiles")
    offsets, byte_counts, width, height, subfile_type = (
        _numbers(fields.get(tag), flavour)
        for tag in (_TILE_OFFSETS, _TILE_BYTE_COUNTS, _WIDTH, _HEIGHT, _NEW_SUBFILE_TYPE)
    )
    if not (offsets and width and height and len(offsets) == len(byte_counts)):
        raise TiffLayoutError(f"{file.name}: the directory at byte {place} has no size or no tiles")
    kind = subfile_type[0] if subfile_type else 0
    following = flavour.offset_in(body[count * entry_size :])
    return _Directory(fields, offsets, byte_counts, kind, width[0] * height[0]), following


def _value(file: BinaryIO, kind: int, length: int, inline: bytes, flavour: _Flavour) -> bytes:
    if kind not in _TYPE_SIZES:
        raise TiffLayoutError(f"{file.name}: holds a field of type {kind}, which TIFF does not have")
    size = _TYPE_SIZES[kind] * length
    return inline[:size] if size <= flavour.offset_size else _read(file, flavour.offset_in(inline), size)


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    found = file.read(size)
    if len(found) < size:
        raise TiffLayoutError(f"{file.name}: ends at byte {place + len(found)}, expected {size} bytes from {place}")
    return found


def _numbers(field: _Field | None, flavour: _Flavour) -> tuple[int, ...]:
    if field is None:
        return ()
    return struct.unpack(f"{flavour.order}{field.count}{_FORMATS[field.kind]}", field.data)


# --- writing --------------------------------------------------------------------------------------------------------


def _copy_tiles(old: BinaryIO, new: BinaryIO, directory: _Directory) -> list[int]:
    """Append a directory's tiles, each between its size and its last four bytes; their new offsets."""
    offsets = []
    for offset, count in zip(directory.offsets, directory.byte_counts, strict=True):
        if not count:
            raise TiffLayoutError(f"{old.name}: a tile of the image of {directory.pixels} pixels was never written")
        tile = _read(old, offset, count)
        offsets.append(new.tell() + 4)
        new.write(b"".join((struct.pack("<I", count), tile, tile[-4:])))
    return offsets


def _directory_bytes(
    directory: _Directory, offsets: Sequence[int], start: int, following: int, flavour: _Flavour
) -> bytes:
    """A directory that lies at ``start``, with the values that do not fit into its entries behind it."""
    packed = flavour.pack(f"{len(offsets)}{'Q' if flavour.big else 'I'}", *offsets)
    fields = directory.fields | {_TILE_OFFSETS: _Field(flavour.offset_type, len(offsets), packed)}
    behind = start + _entries_size(len(fields), flavour)
    entries, values = [], bytearray()
    for tag, field in sorted(fields.items()):
        value = field.data
        if len(value) > flavour.offset_size:
            value = flavour.offset(behind + len(values))
            values += field.data.ljust(_even(len(field.data)), b"\0")
        count = flavour.pack("HHQ" if flavour.big else "HHI", tag, field.kind, field.count)
        entries.append(count + value.ljust(flavour.offset_size, b"\0"))
    number = flavour.pack("Q" if flavour.big else "H", len(fields))
    return b"".join(chain([number], entries, [flavour.offset(following), bytes(values)]))


def _directory_size(directory: _Directory, flavour: _Flavour) -> int:
    return len(_directory_bytes(directory, [0] * len(directory.offsets), 0, 0, flavour))


def _entries_size(count: int, flavour: _Flavour) -> int:
    return (8 + 20 * count + 8) if flavour.big else (2 + 12 * count + 4)


def _even(size: int) -> int:
    return size + size % 2
