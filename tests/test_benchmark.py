"""The benchmark measures what it says: the reference is the same network, a report says where it ran."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from pancrafter import benchmark
from pancrafter.cli import app
from pancrafter.model.layers import local_attention


def test_unfolded_attention_is_the_same_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 32, 9, 7, generator=generator) for _ in range(3))
    found = benchmark.unfold_attention(query, key, value, heads=2)
    assert torch.allclose(found, local_attention(query, key, value, heads=2), atol=1e-5)


def test_report_names_commit_machine_and_versions() -> None:
    words = ["bench", "--only", "io,engine", "--sizes", "256", "--threads", "1", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"commit", "machine", "cores", "device", "python", "versions", "threads"} <= report.keys()
    by_name = {measure["name"]: measure for measure in report["measures"]}
    assert {"io", "engine"} <= by_name.keys()
    for measure in by_name.values():
        assert measure["mpx"] == pytest.approx(256**2 / 1e6)
        assert measure["cpu_s"] > 0
        assert measure["peak_mib"] > 10
    assert report["ratios"]["engine over I/O, time, 256 px"] > 0


def test_unknown_measures_and_sizes_are_named() -> None:
    for words, message in (
        (["--only", "speed"], "no measure 'speed'; choose of model-reference"),
        (["--sizes", "big"], "--sizes: found 'big'"),
        (["--sizes", "100"], "expected multiples of 64"),
    ):
        result = CliRunner().invoke(app, ["bench", *words])
        assert result.exit_code == 2
        assert message in result.stderr
    assert "gdal_pansharpen to a COG" in CliRunner().invoke(app, ["bench", "--list"]).stdout


def test_programs_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = CliRunner().invoke(app, ["bench", "--only", "orfeo,gdal-pansharpen-cog", "--sizes", "256"])
    assert result.exit_code == 0, result.output
    assert "orfeo: not measured, the program is not installed (Orfeo ToolBox's BundleToPerfectSensor" in result.stderr
    assert "gdal-pansharpen-cog: not measured" in result.stderr
