"""What more real data is worth: weights taught on every pair but those of one scene, scored on that scene.

    .venv/bin/python tests/benchmarks/leave_one_out.py training/everything.yaml RUNS --pairs ../shared/data/pairs

Prints a Markdown table of ERGAS and SAM at reduced resolution: the open weights, the weights that have not seen that
scene, and the best classical method. Runs that are already in RUNS are continued, or only read again.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from pathlib import Path

import torch
from pydantic import TypeAdapter
from variants import trained

from pancrafter import classical
from pancrafter.engine import NetworkSharpener
from pancrafter.evaluate import PairReport, classical_method, evaluate_pair, network_method, summarise
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import find_pair_files, read_pair
from pancrafter.sensors import load_contracts
from pancrafter.training.config import read_config

SCENES: tuple[tuple[str, ...], ...] = (
    ("GE1_*",),
    ("PHR_melbourne_*",),
    ("QB_suburb_8bit",),
    ("QB_toulouse_*",),
    ("QB_town_full",),
    ("S6_*",),
    ("WV2_melbourne_park",),
    ("WV2_mountain_8bit",),
    ("WV2_ridge_8bit",),
    ("WV2_rio_degraded",),
    ("WV2_sydney_8bit",),
    ("WV2_washington",),
    ("X8_*",),
    ("GF2_*", "QB_rr_*", "WV3_*"),
)
"""Pairs that are left out together; the last are too small to train on."""

OPEN, EVERYTHING = "open", "everything"
REPORTS = TypeAdapter(tuple[PairReport, ...])


def main() -> None:
    """Train what is missing, score every scene and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="training configuration with every pair")
    parser.add_argument("runs", type=Path, help="folder for the runs")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reports: list[PairReport] = []
    for patterns in SCENES:
        folder = options.runs / patterns[0].strip("_*")
        kept = folder / "reports.json"
        if not kept.is_file():
            kept.write_bytes(REPORTS.dump_json(_left_out(options, patterns, folder)))
        reports += REPORTS.validate_json(kept.read_bytes())
        print(patterns, "done", flush=True)  # noqa: T201
    _print_table(reports)


def _left_out(options: argparse.Namespace, patterns: tuple[str, ...], folder: Path) -> tuple[PairReport, ...]:
    """Train without the pairs of one scene and score on them."""
    config, contracts, files = read_config(options.config), load_contracts(), find_pair_files(options.pairs)
    left_out = [file for file in files if any(fnmatch(file.stem, p) for p in patterns)]
    others = (file.stem for file in files if file not in left_out)
    chosen = tuple(name for name in others if any(fnmatch(name, p) for p in config.train_pairs))
    variant = config.model_copy(update={"train_pairs": chosen})
    weights = {
        OPEN: str(config.start),
        EVERYTHING: str(trained(variant, options.config.parent, folder, options.device)),
    }
    methods = [
        network_method(name, NetworkSharpener(load_checkpoint(path), options.device)) for name, path in weights.items()
    ]
    methods += [classical_method(name) for name in classical.METHODS]
    pairs = [read_pair(file, contracts, with_truth=False) for file in left_out]
    return tuple(evaluate_pair(pair, methods, full=False) for pair in pairs)


def _print_table(reports: list[PairReport]) -> None:
    print("| pair | open ERGAS / SAM | everything but this scene | best classical |\n|---|---|---|---|")  # noqa: T201
    for report in reports:
        best = report.best_classical()
        assert report.reduced is not None, report.name
        assert best is not None, report.name
        scores = [report.reduced[name] for name in (OPEN, EVERYTHING, best)]
        cells = [f"{score.ergas:.3f} / {score.sam_deg:.3f}" for score in scores]
        print(f"| {report.name} | " + " | ".join(cells) + f" ({best}) |")  # noqa: T201
    for name, standing in summarise(reports, [], [OPEN, EVERYTHING], {}).summary.items():
        print(f"{name}: {standing}")  # noqa: T201


if __name__ == "__main__":
    main()
