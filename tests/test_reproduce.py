"""One command trains on whatever PanCollection sets there are and scores them by the published protocol."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import yaml
from command import call, fails
from numpy.typing import NDArray
from scipy.io import savemat
from test_pancollection import content, write_h5

from pancrafter.errors import InvalidSceneError
from pancrafter.pancollection import SENSORS
from pancrafter.reproduce import PUBLISHED, TRAINED_ON, find_files, reproduce
from pancrafter.training.config import read_config

PROJECT = Path(__file__).resolve().parents[1]
GAINS = SENSORS["gf2"].mtf_gains


def write_mat(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    scene = {name: np.moveaxis(values[0], 0, -1) for name, values in arrays.items()}
    savemat(path, scene | {"pan": scene["pan"][..., 0]})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gaofen-2 set under the usual names, in folders as the benchmark is unpacked."""
    folder = tmp_path_factory.mktemp("pancollection")
    (folder / "training_data").mkdir()
    (folder / "test data").mkdir()
    write_h5(folder / "training_data" / "train_gf2.h5", content(4, 4, 64, GAINS))
    write_h5(folder / "training_data" / "valid_gf2.h5", content(2, 4, 64, GAINS))
    test = content(2, 4, 128, GAINS)
    write_h5(folder / "test data" / "test_gf2_multiExm1.h5", test)
    full = {name: values for name, values in content(1, 4, 128, GAINS).items() if name != "gt"}
    write_h5(folder / "test data" / "test_gf2_OrigScale_multiExm1.h5", full)
    for number in (1, 2):
        write_mat(folder / "test data" / f"Test(HxWxC)_gf2_data_fr{number}.mat", full)
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's configuration, small and short."""
    folder = tmp_path_factory.mktemp("configs")
    paper = yaml.safe_load((PROJECT / "training" / "paper-q4.yaml").read_text())
    paper["network"] |= {"width": 16, "depth": [1, 1, 1]}
    (folder / "paper-q4.yaml").write_text(
        yaml.safe_dump(paper | {"steps": 2, "batch": 2, "validate_every": 2, "precision": "float32"})
    )
    return folder


def test_published_full_resolution_scenes_are_the_mat_files(data: Path) -> None:
    files = find_files(data, "gf2")
    assert [p.name for p in files.train] == ["train_gf2.h5"]
    assert [p.name for p in files.validation] == ["valid_gf2.h5"]
    assert [p.name for p in files.reduced] == ["test_gf2_multiExm1.h5"]
    assert [p.suffix for p in files.full] == [".mat", ".mat"]
    assert find_files(data, "wv3") == find_files(data / "nowhere", "gf2")


def test_command_trains_scores_and_prints_the_papers_figures(data: Path, configs: Path, tmp_path: Path) -> None:
    result = call("reproduce", data, tmp_path, "--configs", configs, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "wv3: left out" in result.stderr
    written = json.loads((tmp_path / "gf2" / "scores.json").read_text())
    assert [pair["name"] for pair in written["pairs"]] == [
        "test_gf2_multiExm1[0]", "test_gf2_multiExm1[1]", "Test(HxWxC)_gf2_data_fr1", "Test(HxWxC)_gf2_data_fr2",
    ]  # fmt: skip
    assert [pair["reduced"] is None for pair in written["pairs"]] == [False, False, True, True]
    assert [pair["full"] is None for pair in written["pairs"]] == [True, True, False, False]
    scores, anchors = result.stdout.split("gf2: the evaluator's anchors, exp")
    (line,) = [line for line in scores.splitlines() if line.strip().startswith("ergas ")]
    found = [pair["reduced"]["pan-crafter"]["ergas"] for pair in written["pairs"][:2]]
    assert f"{mean(found):.4f} ± {stdev(found):.4f}" in line
    assert "0.552" in line
    (line,) = [line for line in anchors.splitlines() if line.strip().startswith("ergas ")]
    assert f"{written['means']['exp']['ergas']:.4f} ± " in line
    assert line.endswith("  2.3660 ± 0.5540  CANConv (CVPR 2024), reproduced")
    assert read_config(tmp_path / "gf2" / "paper.yaml").pancollection is not None


def test_a_finished_training_is_not_repeated(data: Path, configs: Path, tmp_path: Path) -> None:
    first = reproduce(data, tmp_path, configs, sensors=["gf2"])
    weights = (tmp_path / "gf2" / "best.safetensors").read_bytes()
    assert reproduce(data, tmp_path, configs, sensors=["gf2"]) == first
    assert (tmp_path / "gf2" / "best.safetensors").read_bytes() == weights


def test_paper_configurations_are_the_published_network() -> None:
    for bands in (8, 4):
        config = read_config(PROJECT / "training" / f"paper-q{bands}.yaml")
        assert (config.network.bands, config.network.width, config.network.depth) == (bands, 128, (2, 2, 4))
        assert (config.steps, config.batch, config.learning_rate, config.warmup) == (50_000, 48, 1e-4, 100)
        assert config.clip_norm is None
    assert TRAINED_ON["wv2"] == "wv3"
    assert PUBLISHED["wv3"]["ergas"] == 2.04


def test_without_a_complete_set_nothing_is_done(tmp_path: Path) -> None:
    with pytest.raises(InvalidSceneError, match="no set is complete; expected train_SET"):
        reproduce(tmp_path, tmp_path / "runs", PROJECT / "training")


def test_unknown_sets_are_refused(tmp_path: Path) -> None:
    line = fails(2, "reproduce", tmp_path, tmp_path, "--set", "wv9")
    assert "--set: found wv9, expected wv3, qb, gf2, wv2" in line
    assert f"DATA: {tmp_path}/no is no folder" in fails(2, "reproduce", tmp_path / "no", tmp_path)
