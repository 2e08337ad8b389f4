"""What a run leaves beside its weights: where they come from, and its metrics."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from collections import ChainMap
from collections.abc import Mapping
from importlib.metadata import version as package_version
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch

from pancrafter.model.names import weights_sha256
from pancrafter.model.weights import load_checkpoint
from pancrafter.pancollection import Patches
from pancrafter.training.config import TrainConfig
from pancrafter.training.images import TrainingData, data_hashes


def provenance(
    config: TrainConfig, base: Path, images: TrainingData, validation: TrainingData
) -> dict[str, Any]:  # Any: plain JSON
    """Where a run's weights come from: configuration, seed, code and data, that of the weights before included."""
    before = [load_checkpoint(name).training for name in (config.start, config.mean_with) if name is not None]
    names = [[d.name] if isinstance(d, Patches) else [image.name for image in d] for d in (images, validation)]
    return {
        "images": list(dict.fromkeys(chain(names[0], *(training.get("images", ()) for training in before)))),
        "validation": names[1],
        "config": config.model_dump(mode="json"),
        "data_sha256": dict(ChainMap(data_hashes(config, base), *(t.get("data_sha256", {}) for t in before))),
        "start_sha256": weights_sha256(config.start) if config.start is not None else None,
        "mean_with_sha256": weights_sha256(config.mean_with) if config.mean_with is not None else None,
        "commit": code_commit(),
        "version": package_version("pancrafter"),
        "torch": str(torch.__version__),
    }


def code_commit() -> str | None:
    """The git commit this code was checked out from, with ``+changes`` where files differ; None outside git."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        asked = [git, "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  # git, fixed words
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return commit if commit is None else commit + ("+changes" if ask("status", "--porcelain", ".") else "")


class MetricsLog:
    """``metrics.csv``, and event files for TensorBoard where tensorboardX is installed (``pancrafter[train]``).

    A resumed run continues both. Columns: step, Unix time, loss, validation ERGAS, ERGAS of cubic up-sampling.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._csv = (folder / "metrics.csv").open("a", newline="")
        self._events = _event_writer(folder, first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add what was measured after ``step``; readers see it at once."""
        row = [step, f"{time.time():.0f}", f"{values['loss']:.5f}"]
        csv.writer(self._csv).writerow([*row, f"{values['ergas']:.4f}", f"{values['ergas_cubic']:.4f}"])
        self._csv.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._csv.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, first_step: int) -> Any:  # Any: tensorboardX has no types
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # file names hold only the second of their start: a run that goes on at once must not overwrite its beginning
    purge = first_step + 1 if first_step else None
    return SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".step-{first_step}")
