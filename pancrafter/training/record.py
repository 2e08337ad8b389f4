"""What a run leaves beside its weights: where they come from, and its metrics."""

from __future__ import annotations

import csv
import time
from collections import ChainMap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch

from pancrafter.errors import InvalidSceneError
from pancrafter.model.names import weights_sha256, without_folders
from pancrafter.model.weights import load_checkpoint
from pancrafter.pair_files import pair_name
from pancrafter.pancollection import Patches
from pancrafter.training.config import TrainConfig
from pancrafter.training.images import TrainingData, data_hashes
from pancrafter.types import Record
from pancrafter.version import code_commit, code_version

MAY_CHANGE = ("steps", "learning_rate", "pairs_dir", "start", "mean_with")
"""Fields that may be others when a run goes on: how long, how fast, and where files lie whose content is compared."""


class MadeFrom(Record):
    """What decides the weights of a run: its configuration and, by SHA-256 (hex), the files that this names."""

    config: TrainConfig
    data_sha256: dict[str, str]
    start_sha256: str | None
    mean_with_sha256: str | None

    @classmethod
    def of(cls, config: TrainConfig, base: Path) -> Self:
        """What ``config`` says, its paths being relative to ``base``.

        Raises:
            InvalidSceneError: There is no such pair or file.
            WeightsError: There are no such weights.
        """
        return cls(
            config=config,
            data_sha256=data_hashes(config, base),
            start_sha256=weights_sha256(config.start) if config.start is not None else None,
            mean_with_sha256=weights_sha256(config.mean_with) if config.mean_with is not None else None,
        )

    def differences(self, now: MadeFrom) -> list[str]:
        """Every field that is another one ``now`` and may not be while a run goes on, with both values."""
        before, after = self._decisive(), now._decisive()
        fields = [field for field in {**before, **after} if before.get(field) != after.get(field)]
        return [f"{field} was {before.get(field)!s:.40}, is {after.get(field)!s:.40}" for field in fields]

    def _decisive(self) -> dict[str, Any]:  # Any: plain JSON
        values = self.model_dump(mode="json")
        for field in MAY_CHANGE:
            del values["config"][field]
        patches = values["config"]["pancollection"] or {}
        for part in patches.keys() & {"train", "validation"}:
            patches[part] = [Path(file).name for file in patches[part]]
        return _leaves(values.pop("config")) | _leaves(values)


def _leaves(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def provenance(
    made_from: MadeFrom, images: TrainingData, validation: TrainingData
) -> dict[str, Any]:  # Any: plain JSON
    """Where a run's weights come from: configuration, seed, code and data, that of the weights before included.

    Raises:
        InvalidSceneError: The weights before were trained on what this run validates on.
    """
    config = made_from.config
    before = [load_checkpoint(name).training for name in (config.start, config.mean_with) if name is not None]
    names = [[d.name] if isinstance(d, Patches) else [image.name for image in d] for d in (images, validation)]
    taught = {sha256 for t in before for sha256 in _files(t.get("images", ()), t.get("data_sha256", {})).values()}
    held_out = _files(names[1], made_from.data_sha256)
    if known := [file for file, sha256 in held_out.items() if sha256 in taught]:
        raise InvalidSceneError(
            f"{', '.join(known)}: to validate on, and the weights of start or mean_with were trained on it, so the "
            "best step would be chosen by what was learned; name other files"
        )
    return {
        "images": list(dict.fromkeys(chain(names[0], *(training.get("images", ()) for training in before)))),
        "validation": names[1],
        **made_from.model_dump(mode="json"),
        "config": without_folders(config.model_dump(mode="json")),
        "data_sha256": dict(ChainMap(made_from.data_sha256, *(t.get("data_sha256", {}) for t in before))),
        "commit": code_commit(),
        "version": code_version(),
        "torch": str(torch.__version__),
    }


def _files(images: Iterable[str], sha256: Mapping[str, str]) -> dict[str, str]:
    """Of the hashes of files by name those that hold the pixels of some pairs, or patches, by name."""
    names = {part for image in images for part in image.split("+")}
    return {
        file: found
        for file, found in sha256.items()
        if not file.endswith(".json") and not names.isdisjoint((file, pair_name(Path(file))))
    }


class MetricsLog:
    """``metrics.csv``, and event files for TensorBoard where tensorboardX is installed (``pancrafter[train]``).

    A resumed run continues both; one that begins anew in a folder that was used begins both anew. Before ``begin``
    nothing of what is there is lost, nor waits to be written: on a full disk that fails again when it is closed.
    Columns: step, Unix time, loss, validation ERGAS, ERGAS of cubic up-sampling.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._csv, self._first_step = folder, folder / "metrics.csv", first_step
        self._csv.open("a").close()
        self._begun = False
        self._events: Any = None

    def begin(self) -> None:
        """Before the first state is saved, or a run that goes on from it would keep figures of the one before."""
        if self._begun:
            return
        if not self._first_step:
            self._csv.open("w").close()
        self._events = _event_writer(self._folder, self._first_step)
        if self._events is not None:
            self._events.flush()
        self._begun = True

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add what was measured after ``step``; readers see it at once."""
        self.begin()
        row = [step, f"{time.time():.0f}", f"{values['loss']:.5f}"]
        with self._csv.open("a", newline="") as file:
            csv.writer(file).writerow([*row, f"{values['ergas']:.4f}", f"{values['ergas_cubic']:.4f}"])
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            with suppress(OSError):  # the table holds it all
                self._events.close()


def _event_writer(folder: Path, first_step: int) -> Any:  # Any: tensorboardX has no types
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    # file names hold only the second of their start: a run that goes on at once must not overwrite its beginning
    return SummaryWriter(str(folder), purge_step=first_step + 1, filename_suffix=f".step-{first_step}")
