"""Names of methods and of shipped weights, and what weights are for, apart from everything that needs torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pancrafter.errors import WeightsError

SharpeningMethod = Literal["pan-crafter", "mtf-glp-fs", "gsa", "brovey", "exp"]
"""What sharpens a scene: the network, or a classical method."""

DEFAULT_WEIGHTS = "open-compact"


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
        raise WeightsError(
            f"weights {name_or_path!r} not found: expected one of {sorted(index)} or a .safetensors file"
        )
    return path


def model_name(name_or_path: str) -> str:
    """What weights are called in items: the shipped name, or that of the file, without folders."""
    return Path(name_or_path).name.removesuffix(".safetensors")


def without_folders(config: Mapping[str, Any]) -> dict[str, Any]:  # Any: parsed JSON
    """A training configuration that names weights and files, but not where they lie on somebody's disk."""
    told = {key: value for key, value in config.items() if key != "pairs_dir"}
    told |= {key: model_name(told[key]) for key in ("start", "mean_with") if told.get(key)}
    if patches := told.get("pancollection"):
        files = {key: [Path(file).name for file in patches[key]] for key in ("train", "validation") if key in patches}
        told["pancollection"] = {**patches, **files}
    return told


def weights_sha256(name_or_path: str) -> str:
    """SHA-256 of the weights file, hex.

    Raises:
        WeightsError: The file does not exist or cannot be read, or a shipped file is not the recorded one.
    """
    path = weights_path(name_or_path)
    try:
        found = file_sha256(path)
    except OSError as err:
        raise WeightsError(f"{path} cannot be read ({err.strerror}); mend its rights, or give other weights") from err
    expected = shipped_weights().get(name_or_path, {}).get("sha256", found)
    if found != expected:
        raise WeightsError(f"{path.name} has SHA-256 {found}, expected {expected}: the file is damaged; reinstall")
    return found


def planned_sha256(name_or_path: str) -> str:
    """As ``weights_sha256``, for plans over many scenes: a file is read once, and again when it was replaced."""
    return _sha256_of(name_or_path, weights_stamp(name_or_path))


def weights_stamp(name_or_path: str) -> tuple[int, ...]:
    """What changes when the file is replaced, without reading it."""
    stat = weights_path(name_or_path).stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8)
def _sha256_of(name_or_path: str, _stamp: tuple[int, ...]) -> str:
    return weights_sha256(name_or_path)


def for_benchmark(training: Mapping[str, Any]) -> bool:  # Any: parsed JSON
    """Whether weights, by the trainer's record of them, learned PanCollection's protocol, which no scene follows."""
    return bool((training.get("config") or {}).get("pancollection"))


def require_weights(name_or_path: str, found: str, expected: str | None) -> None:
    """Make sure that weights, by their SHA-256, are still those that a scene is made with.

    Raises:
        WeightsError: They are others now.
    """
    if found != expected:
        raise WeightsError(
            f"{name_or_path} has SHA-256 {found}, the scene is made with {expected}: the file was replaced meanwhile, "
            "or differs between machines; give new weights a new name, and run again"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
