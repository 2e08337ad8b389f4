"""What MARs and CM3A are worth: the same training with and without each, several seeds, scored on scenes never seen.

    .venv/bin/python tests/benchmarks/ablation.py training/ablation.yaml RUNS --pairs ../shared/data/pairs --seeds 3

With ``--builds curve`` instead: what more channels, blocks and steps are worth.

Every build trains on the same samples in the same order from scratch, for the same number of steps unless its name says
otherwise. Scores are at
reduced resolution: mean ERGAS and SAM over the pairs as they are, and over some pairs how much ERGAS rises when MS is
moved by one of its pixels against PAN without telling anybody, and when every other band is moved by 1.5 PAN pixels.
Builds that are already in RUNS are continued or only scored again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from variants import trained

from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import evaluate_pair, network_method
from pancrafter.misalignment import measure
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import Pair, find_pair_files, read_pair
from pancrafter.sensors import load_contracts
from pancrafter.training.config import read_config

Changes = dict[str, dict[str, object]]
BUILDS: dict[str, dict[str, Changes]] = {
    "parts": {
        "MARs and CM3A": {},
        "no MARs": {"network": {"mars": False}},
        "no CM3A": {"network": {"attention": "none"}},
    },
    "curve": {
        "MARs and CM3A": {},
        "a quarter of the steps": {"training": {"steps": 100}},
        "four times the steps": {"training": {"steps": 1600}},
        "width 16": {"network": {"width": 16}},
        "width 64": {"network": {"width": 64}},
        "twice the blocks": {"network": {"depth": (2, 2, 2)}},
    },
}
"""Sets of builds, and how each differs from the configuration."""

Scores = dict[str, float]


def main() -> None:
    """Train what is missing, score everything and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="training configuration of the build with both")
    parser.add_argument("runs", type=Path, help="folder for the runs")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--moved", nargs="+", default=["S6_vegetation", "QB_town_full", "GE1_grip"])
    parser.add_argument("--builds", choices=BUILDS, default="parts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(options.config)
    builds = BUILDS[options.builds]
    scores: dict[str, list[Scores]] = {name: [] for name in builds}
    for seed in range(options.seeds):
        for name, changes in builds.items():
            folder = options.runs / f"{name.replace(' ', '-')}-{seed}"
            network = config.network.model_copy(update=changes.get("network", {}))
            told = {**changes.get("training", {}), "network": network, "seed": config.seed + seed}
            variant = config.model_copy(update=told)
            weights = trained(variant, options.config.parent, folder, options.device)
            scores[name].append(_scored(weights, folder / "scores.json", options.pairs, options.moved, options.device))
            print(name, seed, scores[name][-1], flush=True)  # noqa: T201
    _print_table(scores)


def _scored(weights: Path, kept: Path, folder: Path, moved: Sequence[str], device: str) -> Scores:
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    method = network_method("network", NetworkSharpener(load_checkpoint(str(weights)), device))
    pairs = _unseen(folder, weights)
    reports = [evaluate_pair(pair, [method], full=False).reduced for pair in pairs]
    found = [report["network"] for report in reports if report is not None]
    (curve,) = (curve for curve in measure([p for p in pairs if p.name in moved], [method]) if curve.series == "untold")
    scores = {
        "ERGAS": float(np.mean([score.ergas for score in found])),
        "SAM": float(np.mean([score.sam_deg for score in found])),
        "rise, MS moved": curve.rise_at_one,
        "rise, bands apart": curve.rise_bands_apart,
    }
    kept.write_text(json.dumps(scores))
    return scores


def _unseen(folder: Path, weights: Path) -> list[Pair]:
    """Pairs of sensors and places that this training neither saw nor validated on, judged by Wald's protocol."""
    run = json.loads((weights.parent / "run.json").read_text())
    known, contracts = {*run["images"], *run["validation"]}, load_contracts()
    files = [file for file in find_pair_files(folder) if file.stem not in known]
    named = [file for file in files if not file.stem.startswith(("L7_", "L8_", "X8_"))]
    return [read_pair(file, contracts, with_truth=False) for file in named]


def _print_table(scores: dict[str, list[Scores]]) -> None:
    columns = list(scores[next(iter(scores))][0])
    print("| build | " + " | ".join(columns) + " |")  # noqa: T201
    print("|---" * (len(columns) + 1) + "|")  # noqa: T201
    for name, runs in scores.items():
        values = {column: [run[column] for run in runs] for column in columns}
        cells = (_with_spread(values[column]) for column in columns)
        print(f"| {name} | " + " | ".join(cells) + " |")  # noqa: T201


def _with_spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
