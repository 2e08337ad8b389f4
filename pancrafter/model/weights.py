"""Reading and writing checkpoints: safetensors only, strict, verified by SHA-256 when chosen by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pancrafter.errors import WeightsError
from pancrafter.model.config import NetworkConfig
from pancrafter.model.names import DEFAULT_WEIGHTS, shipped_weights, weights_path, weights_sha256
from pancrafter.model.network import PanCrafter


@dataclass(frozen=True)
class Checkpoint:
    """A network in evaluation mode with the identity of its weights."""

    name: str
    sha256: str
    network: PanCrafter
    training: dict[str, Any]
    """What the trainer recorded: data, steps, seed, scores."""


def load_checkpoint(name_or_path: str = DEFAULT_WEIGHTS) -> Checkpoint:
    """Load shipped weights by name or any checkpoint of ours by path.

    Raises:
        WeightsError: Not found, not a checkpoint of ours, a tensor missing, unexpected, of another shape or not finite,
            or a shipped file whose hash is not the recorded one.
    """
    path, sha256 = weights_path(name_or_path), weights_sha256(name_or_path)
    try:
        with safe_open(path, framework="pt") as file:
            config, training = _description(path, file.metadata() or {})
            names = list(file.keys())
            network = _empty_network(path, config, {key: tuple(file.get_slice(key).get_shape()) for key in names})
            # Copies: what safetensors gives is the file's own pages, and changes or ends with a file written over.
            tensors = {key: file.get_tensor(key).to(torch.float32, copy=True) for key in names}
    except (SafetensorError, OSError) as err:
        raise WeightsError(
            f"{path} is not a readable safetensors file ({err}); give a checkpoint of pancrafter train"
        ) from err
    network.load_state_dict(tensors, strict=True, assign=True)
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{path}: {len(broken)} of {len(tensors)} tensors hold values that are not finite ({broken[0]}), so every "
            "pixel would be lost; the training failed or the file is damaged: train again or choose other weights"
        )
    network.eval().requires_grad_(requires_grad=False)
    return Checkpoint(
        name=name_or_path if name_or_path in shipped_weights() else path.stem,
        sha256=sha256,
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]  # torch stub misses it
        training=training,
    )


def _description(path: Path, metadata: Mapping[str, str]) -> tuple[NetworkConfig, dict[str, Any]]:
    if "network" not in metadata:
        raise WeightsError(f"{path} holds no network description; expected a checkpoint written by pancrafter train")
    try:
        return NetworkConfig.model_validate_json(metadata["network"]), json.loads(metadata.get("training", "{}"))
    except ValueError as err:
        raise WeightsError(
            f"{path} has a network description or training record this version cannot read ({err}); "
            "use a checkpoint of this version"
        ) from err


def _empty_network(path: Path, config: NetworkConfig, shapes: Mapping[str, tuple[int, ...]]) -> PanCrafter:
    """The network whose tensors are those of a file; memory for what a stranger's description asks is not taken."""
    wrong = f"{path} does not fit its own description {config}"
    if sum(config.depth) > len(shapes):
        raise WeightsError(f"{wrong}: it has {len(shapes)} tensors for {sum(config.depth)} blocks or more")
    try:
        with torch.device("meta"):
            network = PanCrafter(config)
    except (RuntimeError, TypeError) as err:
        raise WeightsError(f"{wrong}: {str(err).splitlines()[0]}") from err
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if differing := [key for key in sorted({*expected, *shapes}) if expected.get(key) != shapes.get(key)]:
        first = differing[0]
        found, wanted = (f"of shape {of[first]}" if first in of else "missing" for of in (shapes, expected))
        raise WeightsError(f"{wrong}: {len(differing)} tensors differ; {first} is {found}, expected {wanted}")
    return network


def save_checkpoint(path: Path, network: PanCrafter, training: dict[str, Any]) -> None:
    """Write weights with the network's configuration and the training record; the file appears only when whole."""
    tensors = {key: value.detach().contiguous().cpu() for key, value in network.state_dict().items()}
    metadata = {"network": network.config.model_dump_json(), "training": json.dumps(training, sort_keys=True)}
    partial = path.with_suffix(".partial")
    partial.write_bytes(save(tensors, metadata))  # its save_file would let nobody else read the file
    partial.replace(path)
