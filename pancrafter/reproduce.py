"""The paper's tables for whoever holds PanCollection: train the published network on every set, score it, compare.

Figures of the paper are as published; EXP and classical methods are scored beside it. What others found for EXP, which
has no weights, checks the evaluator before any claim (``ANCHORS``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from pancrafter.engine import NetworkSharpener
from pancrafter.errors import InvalidSceneError
from pancrafter.evaluate import (
    NETWORK,
    UPSAMPLING,
    Evaluation,
    classical_method,
    evaluate_all,
    network_method,
    summarise,
)
from pancrafter.model.weights import load_checkpoint
from pancrafter.pairs import Pair, Unreadable
from pancrafter.pancollection import SENSORS, read_test_pairs
from pancrafter.training.loop import train

PUBLISHED: dict[str, dict[str, float]] = {
    "wv3": {"psnr_db": 37.956, "ssim": 0.976, "sam_deg": 2.787, "ergas": 2.040, "scc": 0.988, "q2n": 0.922,
            "d_lambda": 0.016, "d_s": 0.027, "hqnr": 0.958},
    "qb": {"psnr_db": 38.195, "ssim": 0.963, "sam_deg": 4.426, "ergas": 3.570, "scc": 0.984, "q2n": 0.938,
           "d_lambda": 0.043, "d_s": 0.039, "hqnr": 0.920},
    "gf2": {"psnr_db": 45.076, "ssim": 0.988, "sam_deg": 0.596, "ergas": 0.552, "scc": 0.994, "q2n": 0.988,
            "d_lambda": 0.020, "d_s": 0.017, "hqnr": 0.964},
    "wv2": {"psnr_db": 29.276, "ssim": 0.839, "sam_deg": 5.078, "ergas": 4.169, "scc": 0.924, "q2n": 0.846,
            "d_lambda": 0.022, "d_s": 0.036, "hqnr": 0.942},
}  # fmt: skip
"""PAN-Crafter, arXiv 2505.23367v2, tables for WV3, QB, GF2, and WV2 with weights of WV3."""

TRAINED_ON = {"wv3": "wv3", "qb": "qb", "gf2": "gf2", "wv2": "wv3"}
"""Which set's weights a set is scored with."""

_BASELINES = (UPSAMPLING, "mtf-glp-fs", "bt-h")


class Anchor(NamedTuple):
    """A figure of EXP on a set's test scenes, mean and standard deviation over scenes, and who found it."""

    score: str
    mean: float
    deviation: float | None
    source: str


_CANCONV = "CANConv (CVPR 2024), reproduced"
_REPRODUCTION = "github.com/hojunking/PAN-Crafter-repro, measured"

ANCHORS: dict[str, tuple[Anchor, ...]] = {
    "wv3": (
        Anchor("ergas", 7.12, None, _REPRODUCTION),
        Anchor("d_lambda", 0.0232, 0.0066, _CANCONV),
        Anchor("d_s", 0.0813, 0.0318, _CANCONV),
        Anchor("hqnr", 0.897, 0.036, _CANCONV),
    ),
    "gf2": (
        Anchor("sam_deg", 1.820, 0.403, _CANCONV),
        Anchor("ergas", 2.366, 0.554, _CANCONV),
        Anchor("q2n", 0.812, 0.051, _CANCONV),
        Anchor("d_lambda", 0.0180, 0.0081, _REPRODUCTION),
        Anchor("d_s", 0.0957, 0.0209, _REPRODUCTION),
        Anchor("hqnr", 0.8881, 0.0228, _REPRODUCTION),
    ),
}
"""By set, only figures whose source was at hand; at full resolution of the 20 scenes in mat files."""


@dataclass(frozen=True)
class SetFiles:
    """Files of one set. ``full`` are mat files where there are any: the published rows come from those."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    reduced: tuple[Path, ...]
    full: tuple[Path, ...]


def find_files(data: Path, sensor: str) -> SetFiles:
    """The files of a set anywhere below ``data``, told apart by their usual names."""
    files = sorted(p for p in data.rglob("*") if p.suffix in {".h5", ".mat"} and sensor in p.stem.casefold())

    def named(kind: str, suffix: str) -> tuple[Path, ...]:
        return tuple(p for p in files if kind in p.stem.casefold() and p.suffix == suffix)

    reduced = tuple(p for p in named("test", ".h5") if "origscale" not in p.stem.casefold())
    full = tuple(p for p in named("test", ".h5") if p not in reduced)
    full_mats = tuple(p for p in named("test", ".mat") if "_fr" in p.stem.casefold())
    reduced_mats = tuple(p for p in named("test", ".mat") if p not in full_mats)
    return SetFiles(
        train=named("train", ".h5"),
        validation=named("valid", ".h5"),
        reduced=reduced or reduced_mats,
        full=full_mats or full,
    )


def reproduce(
    data: Path,
    runs: Path,
    configs: Path,
    *,
    sensors: Sequence[str] | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _line: None,
) -> dict[str, Evaluation]:
    """Train (or continue) and score every set that ``data`` holds; results lie in ``runs/SENSOR``.

    Args:
        data: Folder with PanCollection files, searched to its bottom.
        runs: Where runs, weights and ``scores.json`` go; finished trainings are not repeated.
        configs: Folder with ``paper-q8.yaml`` and ``paper-q4.yaml``.
        sensors: Only these of wv3, qb, gf2, wv2.
        device: torch device.
        report: Takes a line about what is done.

    Raises:
        InvalidSceneError: Nothing that could be done is in ``data``, or a file is damaged.
    """
    results: dict[str, Evaluation] = {}
    for sensor in sensors or PUBLISHED:
        files, teacher = find_files(data, sensor), TRAINED_ON[sensor]
        training = find_files(data, teacher)
        if not (training.train and training.validation) or not (files.reduced or files.full):
            report(f"{sensor}: left out, {data} lacks its training, validation or test files")
            continue
        weights = runs / teacher / "best.safetensors"
        config = _write_config(configs, runs / teacher, teacher, training)
        report(f"{sensor}: training on {', '.join(p.name for p in training.train)}")
        train(config, runs / teacher, device=device)
        report(f"{sensor}: scoring {len(files.reduced)} reduced and {len(files.full)} full-resolution files")
        results[sensor] = _score(files, weights, sensor, device)
        path = runs / sensor / "scores.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results[sensor].model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    if not results:
        raise InvalidSceneError(
            f"{data}: no set is complete; expected train_SET.h5, valid_SET.h5 and test files, SET of wv3, qb, gf2"
        )
    return results


def _write_config(configs: Path, folder: Path, sensor: str, files: SetFiles) -> Path:
    """The paper's configuration with the files that were found, beside the run."""
    template = configs / f"paper-q{len(SENSORS[sensor].bands)}.yaml"
    try:
        content: dict[str, Any] = yaml.safe_load(template.read_text(encoding="utf-8"))
    except OSError as err:
        raise InvalidSceneError(f"{template}: not readable ({err}); give the folder with --configs") from err
    content["pancollection"] = {
        "train": [str(p.resolve()) for p in files.train],
        "validation": [str(p.resolve()) for p in files.validation],
        "sensor": sensor,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "paper.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _score(files: SetFiles, weights: Path, sensor: str, device: str) -> Evaluation:
    checkpoint = load_checkpoint(str(weights))
    methods = [network_method(NETWORK, NetworkSharpener(checkpoint, device)), *map(classical_method, _BASELINES)]
    reports, failed = [], []
    for entry in evaluate_all(_pairs(files, sensor), methods):
        if isinstance(entry, Unreadable):
            failed.append(entry)
        else:
            reports.append(entry)
    return summarise(reports, failed, [NETWORK], {NETWORK: checkpoint.sha256})


def _pairs(files: SetFiles, sensor: str) -> Iterator[Pair | Unreadable]:
    for path in (*files.reduced, *files.full):
        yield from read_test_pairs(path, sensor)


def deviations(result: Evaluation, score: str, method: str = NETWORK) -> float | None:
    """Standard deviation over scenes (N - 1) of a method's score, as published tables give it."""
    values = [
        getattr(section[method], score)
        for report in result.pairs
        for section in (report.reduced or {}, report.full or {})
        if method in section and getattr(section[method], score, None) is not None
    ]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
