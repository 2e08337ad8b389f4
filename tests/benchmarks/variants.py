"""Trainings that differ from a configuration file in a few values."""

from __future__ import annotations

from pathlib import Path

import yaml

from pancrafter.training.config import TrainConfig
from pancrafter.training.loop import train


def trained(config: TrainConfig, base: Path, folder: Path, device: str) -> Path:
    """The best checkpoint of a training in ``folder``, which is continued where it stopped.

    ``base`` is what the paths in ``config`` are relative to.
    """
    settings = config.model_dump(mode="json")
    if config.pairs_dir is not None:
        settings["pairs_dir"] = str((base / config.pairs_dir).resolve())
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "variant.yaml"
    written.write_text(yaml.safe_dump(settings))
    return train(written, folder, device=device)
