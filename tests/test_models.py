"""A model item says what its weights are to be given, which for those of the benchmark is something else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from networks import random_network

from pancrafter.model.weights import save_checkpoint
from pancrafter.models import build_model_item


def words_of(weights: str) -> tuple[str, str, str]:
    """How the item of some weights describes PAN, MS and result."""
    properties = build_model_item(weights)[0].properties
    pan, ms = (entry["description"] for entry in properties["mlm:input"][:2])
    return pan, ms, properties["mlm:output"][0]["description"]


def test_shipped_weights_take_any_band_by_percentiles() -> None:
    pan, ms, result = words_of("open-compact")
    assert "1st and 99th percentile" in pan
    assert ms.startswith("One multispectral band of any wavelength")
    assert "trained at ratio 2, 3, 4" in ms
    assert "back-projection" in result


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"train": ["sets/train_gf2.h5"], "sensor": None}, ("gaofen-2", 4, "blue, green, red, nir", 1023)),
        ({"train": ["patches.h5"], "sensor": "qb"}, ("quickbird", 4, "blue, green, red, nir", 2047)),
    ],
)
def test_weights_of_the_benchmark_say_what_they_are_for(
    data: dict[str, Any], expected: tuple[str, int, str, int], tmp_path: Path
) -> None:
    sensor, bands, names, ceiling = expected
    path = tmp_path / "published.safetensors"
    save_checkpoint(path, random_network(bands=bands), {"config": {"pancollection": data, "ratios": {"4": 1.0}}})
    pan, ms, result = words_of(str(path))
    assert pan == f"Panchromatic band on its own grid, 2 DN / {ceiling} - 1."
    assert f"The bands of {sensor} in PanCollection ({names}), ratio 4, MS pixel i at PAN index 4 i + 2" in ms
    assert "nothing is put back. For the benchmark's tables only" in result
    assert not any("percentile" in words or "any wavelength" in words for words in (pan, ms, result))


@pytest.mark.parametrize(
    ("parts", "inputs", "result", "agreement"),
    [
        ({}, {"lowpass_pan": 1}, 2, r"brought into agreement with the MS input \(one step of back-projection\)\."),
        ({"split_pan": False, "weighs_ms": 1}, {}, 4, "and the share of what that leaves"),
        (
            {"injected_detail": True, "matched_lowpass": True, "told_uncertainty": True, "weighs_ms": 2},
            {"lowpass_pan": 1, "injected_detail": 2, "uncertainty": 1},
            6,
            "PAN's fine detail is put back; .* the second of what four more would add",
        ),
    ],
)
def test_inputs_and_outputs_are_those_of_the_network(
    tmp_path: Path, parts: dict[str, Any], inputs: dict[str, int], result: int, agreement: str
) -> None:
    """High-pass PAN is the one input of the stem that follows from two others."""
    network, path = random_network(bands=2, **parts), tmp_path / "two.safetensors"
    save_checkpoint(path, network, {})
    properties = build_model_item(str(path))[0].properties
    given = {entry["name"]: entry["input"]["shape"][1] for entry in properties["mlm:input"]}
    assert given == {"pan": 1, "ms": 2, **inputs}
    assert network.config.stem_channels == sum(given.values()) + network.config.split_pan
    (output,) = properties["mlm:output"]
    assert output["result"]["shape"][1] == result == network.config.head_channels
    assert re.search(agreement, output["description"])


def test_where_files_lay_on_the_trainers_disk_is_left_out(tmp_path: Path) -> None:
    """Also of weights whose record was written before it left that out itself."""
    config = {
        "start": "/home/me/my weights/first.safetensors",
        "mean_with": "/home/me/second.safetensors",
        "pairs_dir": "/home/me/pairs",
        "pancollection": {"train": ["/home/me/train_gf2.h5"], "validation": ["/home/me/valid_gf2.h5"], "sensor": None},
    }
    path = tmp_path / "tuned.safetensors"
    save_checkpoint(path, random_network(bands=4), {"config": config, "start_sha256": "ab", "mean_with_sha256": None})
    properties = build_model_item(str(path))[0].properties
    assert properties["mlm:pretrained_source"] == "first"
    assert properties["mlm:hyperparameters"]["training"] == {
        "start": "first",
        "mean_with": "second",
        "pancollection": {"train": ["train_gf2.h5"], "validation": ["valid_gf2.h5"], "sensor": None},
        "start_sha256": "ab",
    }
    assert "/home/me" not in json.dumps(properties)


def test_weights_of_several_bands_take_those_they_learned(tmp_path: Path) -> None:
    path = tmp_path / "four.safetensors"
    save_checkpoint(path, random_network(bands=4), {})
    _, ms, _ = words_of(str(path))
    assert ms.startswith(
        "4 multispectral bands at once, which and in the order that the weights were trained with; ratio"
    )
