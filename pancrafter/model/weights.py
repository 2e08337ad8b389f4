"""Reading and writing checkpoints: safetensors only, strict, verified by SHA-256 when chosen by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pancrafter.errors import WeightsError
from pancrafter.model.config import NetworkConfig
from pancrafter.model.network import PanCrafter

DEFAULT_WEIGHTS = "open-compact"


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with the identity of its weights."""

    name: str
    sha256: str
    network: PanCrafter
    training: dict[str, Any]
    """What the trainer recorded: data, steps, seed, scores."""


def shipped_weights() -> dict[str, dict[str, str]]:
    """Name -> ``file`` and ``sha256`` of the weights in this package."""
    text = resources.files("pancrafter").joinpath("weights", "index.json").read_text()
    index: dict[str, dict[str, str]] = json.loads(text)
    return index


def weights_path(name_or_path: str) -> Path:
    """The file of shipped weights called ``name_or_path``, or the path itself.

    Raises:
        WeightsError: Neither a shipped name nor an existing file.
    """
    index = shipped_weights()
    if name_or_path in index:
        return Path(str(resources.files("pancrafter").joinpath("weights", index[name_or_path]["file"])))
    path = Path(name_or_path)
    if not path.is_file():
        raise WeightsError(f"weights {name_or_path!r} not found: expected one of {sorted(index)} or a .safetensors file")
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_checkpoint(name_or_path: str = DEFAULT_WEIGHTS) -> Checkpoint:
    """Load shipped weights by name or any checkpoint of ours by path.

    Raises:
        WeightsError: Not found, not a checkpoint of ours, a tensor missing, unexpected or of another shape, or a
            shipped file whose hash is not the recorded one.
    """
    path = weights_path(name_or_path)
    sha256 = file_sha256(path)
    expected = shipped_weights().get(name_or_path, {}).get("sha256", sha256)
    if sha256 != expected:
        raise WeightsError(f"{path.name} has SHA-256 {sha256}, expected {expected}: the file is damaged; reinstall")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as err:
        raise WeightsError(f"{path} is not a readable safetensors file ({err}); give a checkpoint of pancrafter train") from err
    if "network" not in metadata:
        raise WeightsError(f"{path} holds no network description; expected a checkpoint written by pancrafter train")
    config = NetworkConfig.model_validate_json(metadata["network"])
    network = PanCrafter(config)
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as err:
        raise WeightsError(f"{path} does not fit its own description {config}: {err}") from err
    network.eval().requires_grad_(requires_grad=False)
    return Checkpoint(
        name=name_or_path if name_or_path in shipped_weights() else path.stem,
        sha256=sha256,
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]  # torch stub misses it
        training=json.loads(metadata.get("training", "{}")),
    )


def save_checkpoint(path: Path, network: PanCrafter, training: dict[str, Any]) -> None:
    """Write weights with the network's configuration and the training record; the file appears only when whole."""
    tensors = {key: value.detach().contiguous().cpu() for key, value in network.state_dict().items()}
    metadata = {"network": network.config.model_dump_json(), "training": json.dumps(training, sort_keys=True)}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)
