"""Shifts injected into every real pair, and how well co-registration finds them, band by band.

    python tests/benchmarks/bench_coregistration.py PAIRS_DIR [MARKDOWN]

Every pair is first brought to displacement (0, 0) by what was measured on it, then to the displacements below, by
reading PAN elsewhere. Every band counts whose shift was certain before.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pancrafter.alignment import BandShift, estimate_band_shifts

INJECTED = (0.0, 0.4, 1.25, 2.5, 3.7, 5.0, 6.0)
DIRECTION = (0.8, -0.6)
LARGEST_MS = 192
GOAL_PX = 0.15


def load(path: Path) -> tuple[NDArray[Any], NDArray[Any], int]:
    """PAN, MS and ratio of a pair, cut to a size that is measured in a second."""
    meta = json.loads(path.with_suffix(".json").read_text())
    with np.load(path) as arrays:
        pan, ms = arrays["pan"].astype(np.float32), arrays["ms"].astype(np.float32)
    ratio = int(meta["ratio"])
    rows, cols = (min(size, LARGEST_MS) for size in ms.shape[1:])
    return pan[: rows * ratio, : cols * ratio], ms[:, :rows, :cols], ratio


def moved(pan: NDArray[Any], by_yx: tuple[float, float]) -> NDArray[Any]:
    """PAN whose content lies ``by_yx`` pixels further down and right."""
    return np.asarray(ndimage.shift(pan, by_yx, order=3, mode="nearest"))


def errors_of(
    pan: NDArray[Any], ms: NDArray[Any], ratio: int
) -> tuple[tuple[BandShift, ...], dict[float, list[float]]]:
    """The shifts of a pair, and per injected length the error of every certain band, PAN pixels."""
    phase = ((ratio - 1) / 2,) * 2
    first = estimate_band_shifts(pan, ms, ratio, phase)
    certain = [band for band, shift in enumerate(first) if shift.certain]
    found: dict[float, list[float]] = {}
    if not certain:
        return first, found
    origin = np.median([first[band].shift_yx for band in certain], axis=0)
    for length in INJECTED:
        wanted = length * np.array(DIRECTION)
        after = estimate_band_shifts(moved(pan, tuple(wanted - origin)), ms, ratio, phase)
        found[length] = [
            float(np.hypot(*(np.array(after[band].shift_yx) - first[band].shift_yx - wanted + origin)))
            if after[band].certain
            else float("inf")
            for band in certain
        ]
    return first, found


def main(folder: Path, target: Path | None) -> None:
    """One line per pair: its own shift, the bands that count, the largest error at every injected length."""
    lines = ["| pair | ratio | own shift | bands | " + " | ".join(f"{length:g} px" for length in INJECTED) + " |"]
    lines.append("|---" * (4 + len(INJECTED)) + "|")
    worst: list[float] = []
    for path in sorted(folder.glob("*.npz")):
        pan, ms, ratio = load(path)
        first, found = errors_of(pan, ms, ratio)
        own = np.median([np.hypot(*shift.shift_yx) for shift in first])
        count = len(next(iter(found.values()), []))
        cells = [f"{max(errors):.2f}" if np.isfinite(max(errors)) else "refused" for errors in found.values()]
        worst += [error for errors in found.values() for error in errors]
        row = [path.stem, str(ratio), f"{own:.2f}", f"{count} of {len(first)}", *(cells or ["refused"] * len(INJECTED))]
        lines.append("| " + " | ".join(row) + " |")
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    every, accepted = np.array(worst), np.array(worst)[np.isfinite(worst)]
    summary = (
        f"{np.mean(every <= GOAL_PX):.1%} of {len(every)} band measurements lie within {GOAL_PX} PAN px, "
        f"{np.mean(~np.isfinite(every)):.1%} were refused as uncertain; largest error of an accepted one: "
        f"{accepted.max():.2f} PAN px"
    )
    sys.stdout.write(summary + "\n")
    if target is not None:
        target.write_text("\n".join([*lines, "", summary + ".", ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="PAIRS_DIR", type=Path)
    parser.add_argument("target", metavar="MARKDOWN", type=Path, nargs="?")
    main(**vars(parser.parse_args()))
