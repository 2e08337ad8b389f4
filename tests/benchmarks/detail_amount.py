"""How much of the network's error on real pairs is only a wrong *amount* of detail.

    .venv/bin/python tests/benchmarks/detail_amount.py ../shared/data/pairs

At reduced resolution, with the truth in hand, the network's error is regressed on the detail that Gram-Schmidt adaptive
injects: one number per pair, the same for all bands. *own*: the pair's own number, which only the truth knows.
*others*: the mean number of the other pairs, a correction that could really be applied. Gains are against the best
classical method of each pair.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pancrafter import classical
from pancrafter.assess import BORDER_REDUCED_PX, reduce_tile
from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import AS_SHARP_AS_MS, UPSAMPLING, Method, classical_method, network_method, tile_of
from pancrafter.metrics import ergas
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import Pair, cropped, find_pair_files, read_pair
from pancrafter.sensors import load_contracts

Image = NDArray[np.float32]


@dataclass(frozen=True)
class _Result:
    name: str
    ratio: int
    dn_max: int
    truth: Image
    network: Image
    detail: Image
    best_classical: float

    @property
    def amount(self) -> float:
        """Share of the detail that is missing (positive) or too much, by least squares over relative errors."""
        scale = self.truth.std(axis=(1, 2), keepdims=True)
        error, detail = (self.truth - self.network) / scale, self.detail / scale
        return float((error * detail).sum() / (detail * detail).sum())

    def gain(self, amount: float) -> float:
        """1 - ERGAS / that of the best classical method, with so much more detail."""
        found = ergas(self.truth, (self.network + amount * self.detail).clip(0, self.dn_max), self.ratio)
        return 1 - found / self.best_classical


def main() -> None:
    """Print one line per pair and the means as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network, contracts = network_method("network", NetworkSharpener(load_checkpoint())), load_contracts()
    trained = {*load_checkpoint().training["images"]}
    files = [file for file in find_pair_files(options.pairs) if file.stem not in trained]
    found = [_measured(read_pair(file, contracts, with_truth=False), network) for file in files]
    results = [result for result in found if result is not None]
    print("| pair | amount missing | gain as it is | with the others' amount | with its own |\n|---|---|---|---|---|")  # noqa: T201
    rows = []
    for result in results:
        others = float(np.mean([other.amount for other in results if other is not result]))
        rows.append([result.gain(0), result.gain(others), result.gain(result.amount)])
        cells = " | ".join(f"{value:+.1%}" for value in rows[-1])
        print(f"| {result.name} | {result.amount:+.2f} | {cells} |", flush=True)  # noqa: T201
    print(f"| mean | | {' | '.join(f'{value:+.1%}' for value in np.mean(rows, axis=0))} |")  # noqa: T201


def _measured(pair: Pair, network: Method) -> _Result | None:
    pair = cropped(pair, 1024)
    reduced = reduce_tile(tile_of(pair), pair.mtfs, pair.pan_blur)
    if reduced is None:
        return None
    inner = (slice(None), *(slice(BORDER_REDUCED_PX, -BORDER_REDUCED_PX),) * 2)
    made = {
        name: classical_method(name).sharpen(reduced.tile, pair.mtfs, AS_SHARP_AS_MS)[inner].clip(0, pair.dn_max)
        for name in classical.METHODS
    }
    truth = reduced.truth[inner].astype(np.float32)
    return _Result(
        pair.name,
        pair.ratio,
        pair.dn_max,
        truth,
        network.sharpen(reduced.tile, pair.mtfs, AS_SHARP_AS_MS)[inner],
        made["gsa"] - made[UPSAMPLING],
        min(ergas(truth, image, pair.ratio) for name, image in made.items() if name != UPSAMPLING),
    )


if __name__ == "__main__":
    main()
