"""What DN a scene's channels hold: histograms, whether they are what the contract describes, and value ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pancrafter.errors import InvalidSceneError
from pancrafter.headers import Source, Sources
from pancrafter.reading import WindowReader
from pancrafter.sensors import SensorContract
from pancrafter.store import Mask, Pixels
from pancrafter.types import Scene, ValueRange

MAX_SHARE_ABOVE_CEILING = 1e-3
"""More pixels than this above the contract's DN ceiling mean another product than the contract describes."""

RANGE_PERCENTILES = (1.0, 99.0)
"""Share of the valid pixels, in percent, below the low and the high end of a channel's value range."""

NO_COMMON_AREA = "no pixel is valid in PAN and MS at once, expected a common area; check nodata values and masks"

_NOTHING = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Tally:
    """What a set of shards holds: histograms of valid DN per channel (index = DN), and bytes read."""

    pan: NDArray[np.int64]
    ms: tuple[NDArray[np.int64], ...] = ()
    bytes_read: int = 0


def ms_tally(pixels: Pixels, valid: Mask, bytes_read: int) -> Tally:
    """What a window of MS (band, y, x) holds where it is valid."""
    return Tally(pan=_NOTHING, ms=tuple(histogram_of(band, valid) for band in pixels), bytes_read=bytes_read)


def histogram_of(pixels: Pixels, valid: Mask) -> NDArray[np.int64]:
    """How often each DN (the index) occurs among the valid pixels."""
    measured = pixels.ravel() if valid.all() else pixels[valid != 0]
    return np.bincount(measured, minlength=1).astype(np.int64)


def merge_tallies(tallies: Sequence[Tally]) -> Tally:
    """What they hold together."""
    channels = max(len(tally.ms) for tally in tallies)
    ms = tuple(_sum_histograms([tally.ms[band] for tally in tallies if tally.ms]) for band in range(channels))
    return Tally(_sum_histograms([tally.pan for tally in tallies]), ms, sum(tally.bytes_read for tally in tallies))


def _sum_histograms(histograms: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros(max(len(histogram) for histogram in histograms), np.int64)
    for histogram in histograms:
        total[: len(histogram)] += histogram
    return total


def ceiling(contract: SensorContract, ms: Sequence[Source], histograms: Sequence[NDArray[np.int64]], dtype: str) -> int:
    """The contract's ceiling; that of the asset's own scaling once a pixel shows that this scaling was used."""
    largest = max(len(histogram) for histogram in histograms) - 1
    top = contract.dn_max if largest <= contract.dn_max else max(contract.ceiling(source.asset) for source in ms)
    return min(top, int(np.iinfo(dtype).max))


def check_pixels(
    scene: Scene, sources: Sources, tally: Tally, contract: SensorContract, ms_reader: WindowReader
) -> None:
    """Refuse a scene of which a channel is empty, or of another product than its contract describes.

    Raises:
        InvalidSceneError: As ``check_dn``, or no pixel is valid in all bands at once.
    """
    ms_assets = {position: source.asset for source in sources.ms for position in source.positions}
    if tally.pan.any() and not tally.ms[0].any():  # bands are counted where all of them are valid
        empty = ms_reader.empty_band()
        if empty is not None:
            raise InvalidSceneError(_nothing_valid(scene.bands[empty]), scene=scene.key, asset=ms_assets[empty])
        raise InvalidSceneError(
            "no pixel is valid in all bands at once, expected a common area; check nodata values and masks",
            scene=scene.key,
            asset=" and ".join(source.asset for source in sources.ms),
        )
    channels = [(sources.pan.asset, "PAN", tally.pan)]
    channels += [(ms_assets[band], scene.bands[band], histogram) for band, histogram in enumerate(tally.ms)]
    for asset, name, histogram in channels:
        try:
            check_dn(histogram, contract.ceiling(asset), channel=name, sensor=scene.sensor)
        except InvalidSceneError as err:
            raise InvalidSceneError(err.message, scene=scene.key, asset=asset) from None


def check_dn(histogram: NDArray[np.int64], dn_max: int, *, channel: str, sensor: str) -> None:
    """Refuse a channel without pixels, or of another product than its contract describes.

    Args:
        histogram: How often each DN (the index) occurs among the channel's valid pixels.
        dn_max: The contract's ceiling; up to ``MAX_SHARE_ABOVE_CEILING`` of the pixels may be brighter.
        channel: Name of the channel, for the message.
        sensor: Name of the contract.

    Raises:
        InvalidSceneError: No pixel is valid, or too many are above the ceiling.
    """
    count = int(histogram.sum())
    if count == 0:
        raise InvalidSceneError(_nothing_valid(channel))
    above = int(histogram[dn_max + 1 :].sum())
    if above > MAX_SHARE_ABOVE_CEILING * count:
        largest = int(np.flatnonzero(histogram)[-1])
        raise InvalidSceneError(
            f"{channel} holds DN up to {largest} ({above / count:.2%} above {dn_max}), expected at most {dn_max}; this "
            f"is not the product of contract {sensor}: use a contract with the right ceiling"
        )


def _nothing_valid(channel: str) -> str:
    return f"{channel} has no valid pixel inside the overlap, expected data; check nodata value and mask"


def value_range(histogram: NDArray[np.int64]) -> ValueRange:
    """Percentiles of the valid DN; for (almost) constant channels the extremes, a little widened if they are equal."""
    cumulated = np.cumsum(histogram)
    low, high = (int(np.searchsorted(cumulated, cumulated[-1] * share / 100)) for share in RANGE_PERCENTILES)
    if low == high:
        present = np.nonzero(histogram)[0]
        low, high = int(present[0]), int(present[-1])
    return ValueRange(low=low, high=high) if high > low else ValueRange(low=low - 1, high=high + 1)


def require_common_area(scene: Scene, share: float) -> None:
    """Refuse a scene whose PAN and MS are nowhere valid at once.

    Raises:
        InvalidSceneError: ``share``, of PAN pixels that are valid and lie on a valid MS pixel, is 0.
    """
    if share == 0:
        raise InvalidSceneError(
            NO_COMMON_AREA,
            scene=scene.key,
            asset=f"{scene.pan.key} and {scene.ms[0].key}",
        )
