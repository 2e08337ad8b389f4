"""The planted-failure table of docs/quality-gate.md: real and simulated scenes, every failure drawn for every seed.

    PYTHONPATH=tests .venv/bin/python tests/benchmarks/quality_gate.py --seeds 20 --json out.json --markdown table.md

Real scenes are crops of the pairs beside the project, at places that the seed draws; without them only the simulated
ones are measured, and the table says so. Nothing is drawn from a clock: the same seeds give the same table. Limits were
set on other seeds than the default ones, and on the crops from the middle of the pairs.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from planted_failures import ON_RESULT, measure, perturbed, stage_pair
from simulated_scenes import Pair, simulated_scene
from staged_scenes import everything, sharpen_all, write_result

from pancrafter.engine import NetworkSharpener, fit_scene_injection
from pancrafter.errors import ContractError
from pancrafter.model.weights import load_checkpoint
from pancrafter.resample import Mtf, relative_mtf
from pancrafter.sensors import get_contract, load_contracts
from pancrafter.sharpness import band_mtfs, measured_mtf
from pancrafter.store import SceneStore
from pancrafter.types import Quality

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pairs"
SIDE_PX = 256
FIRST_SEED = 400


def real_pairs(names: Sequence[str] | None = None, *, place_seed: int | None = None) -> list[Pair]:
    """One crop of every pair of a known sensor (Landsat 7 thinned out to every fifth), or of these.

    Crops come from the middle, or from where ``place_seed`` says.
    """
    found, landsat = [], 0
    rng = None if place_seed is None else np.random.default_rng(place_seed)
    for path in sorted(PAIRS.glob("*.npz")):
        meta = json.loads(path.with_suffix(".json").read_text())
        if names is not None and meta["name"] not in names:
            continue
        if names is None and meta["name"].startswith("L7_"):
            landsat += 1
            if landsat % 5:
                continue
        try:
            contract = get_contract(meta["sensor"])
            bands = tuple(band.name for band in contract.subset(meta["bands"]))
        except ContractError:
            continue
        with np.load(path) as arrays:
            pan, ms = arrays["pan"], arrays["ms"]
        ratio, (height, width) = meta["ratio"], pan.shape
        spare = [max(0, n - SIDE_PX) // ratio for n in (height, width)]
        y, x = (ratio * (n // 2 if rng is None else int(rng.integers(n + 1))) for n in spare)
        rows, cols = slice(y, min(height, y + SIDE_PX)), slice(x, min(width, x + SIDE_PX))
        small = tuple(slice(part.start // ratio, part.stop // ratio) for part in (rows, cols))
        found.append(Pair(meta["name"], pan[rows, cols], ms[(slice(None), *small)], ratio, contract, bands))
    return found


def sharpness_of(store: SceneStore, pair: Pair) -> tuple[tuple[Mtf, ...], tuple[Mtf, ...]]:
    """MTF of the bands, and the same relative to PAN's."""
    nominal, pan_gain = [band.mtf for band in pair.contract.subset(pair.bands)], pair.contract.pan_mtf
    mtfs = band_mtfs(nominal, measured_mtf(store.staged), pan_gain, pair.ratio)
    return mtfs, tuple(relative_mtf(mtf, pan_gain, pair.ratio) for mtf in mtfs)


def trials(pairs: list[Pair], seeds: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """One record per good scene and per failure and seed."""
    checkpoint = load_checkpoint()
    stores, images = {}, {}

    def record(pair: Pair, kind: str, seed: int, quality: Quality) -> dict[str, Any]:
        decision = pair.contract.quality.verdict(quality, pair.ratio)
        return {
            "scene": pair.name,
            "ratio": pair.ratio,
            "kind": kind,
            "seed": seed,
            "verdict": decision.verdict,
            "reason": decision.reason,
            **quality.model_dump(),
        }

    def fitted(store: SceneStore, pair: Pair) -> NetworkSharpener:
        mtfs, told = sharpness_of(store, pair)
        return NetworkSharpener(checkpoint, injection=fit_scene_injection(store, mtfs), relative_mtf=told)

    for number, pair in enumerate(pairs):
        store = stage_pair(folder / f"{number}.zarr", pair.pan, pair.ms, pair.ratio, pair.contract, pair.bands)
        network = fitted(store, pair)
        started = time.perf_counter()
        sharpen_all(store, network)
        sharpened = time.perf_counter()
        found = record(pair, "none", 0, measure(store, network, sharpness_of(store, pair)[0]))
        found["share_of_time"] = (time.perf_counter() - sharpened) / (sharpened - started)
        stores[number], images[number] = store, store.read_sharpened(everything(store)).astype(np.float64)
        yield found
    for seed in seeds:
        number = int(np.random.default_rng(seed).integers(len(pairs)))
        pair, store, good = pairs[number], stores[number], images[number]
        network = fitted(store, pair)
        for kind, plant in ON_RESULT.items():
            write_result(store, plant(good, np.random.default_rng(seed)))
            yield record(pair, kind, seed, measure(store, network, sharpness_of(store, pair)[0]))
        wrong = replace(network, checkpoint=perturbed(network.checkpoint, np.random.default_rng(seed)))
        store.begin_sharpening(f"wrong {seed}")
        sharpen_all(store, wrong)
        yield record(pair, "wrong weights", seed, measure(store, wrong, sharpness_of(store, pair)[0]))
        store.begin_sharpening("r")
        write_result(store, good)
        others = [p for p in pairs if p.ratio == pair.ratio and p.pan.shape == pair.pan.shape and p.name != pair.name]
        if others:
            other = others[np.random.default_rng(seed).integers(len(others))]
            strange = stage_pair(folder / f"x{seed}.zarr", other.pan, pair.ms, pair.ratio, pair.contract, pair.bands)
            misled = fitted(strange, pair)
            sharpen_all(strange, misled)
            yield record(pair, "another scene's PAN", seed, measure(strange, misled, sharpness_of(strange, pair)[0]))


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: per set and failure how many were caught, and by which checks."""
    lines = ["| scenes | planted | trials | caught | by |", "|---|---|---|---|---|"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for found in records:
        groups[found["set"], found["kind"]].append(found)
    for (name, kind), found in groups.items():
        if kind == "none":
            continue
        caught = sum(one["verdict"] != "pass" for one in found)
        reasons: dict[str, int] = defaultdict(int)
        for one in found:
            for reason in filter(None, one["reason"].split("; ")):
                reasons[_check(reason)] += 1
        by = ", ".join(f"{check} {count}" for check, count in sorted(reasons.items(), key=lambda e: -e[1]))
        lines.append(f"| {name} | {kind} | {len(found)} | {caught} ({caught / len(found):.0%}) | {by} |")
    lines += [
        "",
        "| scenes | good results | passed | classical better at reduced scale | false alarms |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(found["set"] for found in records):
        good = groups[name, "none"]
        passed = sum(one["verdict"] == "pass" for one in good)
        chosen = [
            one for one in good if one["verdict"] != "pass" and set(map(_check, one["reason"].split("; "))) == {"gain"}
        ]
        alarms = len(good) - passed - len(chosen)
        lines.append(f"| {name} | {len(good)} | {passed} | {len(chosen)} | {alarms} ({alarms / len(good):.0%}) |")
    return "\n".join(lines) + "\n"


def _check(reason: str) -> str:
    """The name of the check in a reason."""
    if reason.startswith("gain"):
        return "gain"
    if reason.startswith("PAN"):
        return "PAN correlation"
    return re.split(r" [-\d]| nan", reason)[0]


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=20, help="Planted failures of each kind, and crops of each pair / 10."
    )
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", choices=("real", "simulated"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_contracts()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    sets = {"simulated": [simulated_scene(seed).pair for seed in seeds]}
    if PAIRS.is_dir():
        crops = [real_pairs(place_seed=seed) for seed in seeds[: max(1, len(seeds) // 10)]]
        sets = {"real": [pair for crop in crops for pair in crop]} | sets
    records = []
    for name, pairs in sets.items():
        if options.only not in {None, name}:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for found in trials(pairs, seeds, Path(folder)):
                records.append({"set": name, **found})
                print(  # noqa: T201
                    f"{name} {found['scene']} {found['kind']} {found['seed']}: {found['verdict']} {found['reason']}",
                    flush=True,
                )
                if options.json:
                    options.json.write_text(json.dumps(records, indent=1))
    text = table(records)
    print(text)  # noqa: T201
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
