"""The benchmark measures what it says: the reference is the same network, a report says where it ran."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from command import call, fails, parsed

from pancrafter import benchmark
from pancrafter.model import layers
from pancrafter.model.layers import local_attention


def test_unfolded_attention_is_the_same_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 32, 9, 7, generator=generator) for _ in range(3))
    found = benchmark.unfold_attention(query, key, value, heads=2)
    assert torch.allclose(found, local_attention(query, key, value, heads=2), atol=1e-5)


def test_the_reference_gives_what_the_engine_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        layers, "local_attention", layers.local_attention
    )  # put back after the reference took its place
    setting = benchmark.Setting(name="model", size=0, device="cpu", threads=1, repeat=1, folder="", memory="2GiB")
    sharpener = benchmark._sharpener(setting)
    tile, core = benchmark._tile(32, sharpener.reach_px(benchmark.RATIO, benchmark._PHASES))
    engine = sharpener(tile, core)
    reference = benchmark.plainly(sharpener)(tile, core)
    dn_range = tile.pan_range.high - tile.pan_range.low
    assert engine.shape == (benchmark.BANDS, 32, 32)
    np.testing.assert_allclose(engine, reference, rtol=0, atol=1e-4 * dn_range)
    assert np.ptp(reference) > 0.1 * dn_range


def test_work_shorter_than_a_tick_of_the_system_clock_has_a_rate() -> None:
    setting = benchmark.Setting(name="model", size=0, device="cpu", threads=1, repeat=5, folder="", memory="2GiB")
    measure = benchmark._timed(setting, lambda: sum(range(100)), 1.0)
    assert 0 < measure.cpu_s < 0.01
    assert measure.mpx_per_cpu_s > 100


def test_the_gpu_that_is_measured_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str | None] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    for device in ("cuda:1", "cpu"):
        benchmark._settle(device)
    assert waited == ["cuda:1"]


def test_cpu_time_of_other_programs_counts() -> None:
    before = benchmark._cpu_s()
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert benchmark._cpu_s() - before > 0.2


@pytest.mark.parametrize("name", [name for name in benchmark.MEASURES if "gdal" not in name and name != "orfeo"])
def test_every_measure_of_our_own_can_be_taken(name: str) -> None:
    report = parsed("bench", "--only", name, "--sizes", 256, "--repeat", 1, "--json")
    assert [measure["name"] for measure in report["measures"]] == [name]


def test_report_names_commit_machine_and_versions() -> None:
    report = parsed("bench", "--only", "io,engine", "--sizes", 256, "--threads", 1, "--json")
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
        assert message in fails(2, "bench", *words)
    assert "gdal_pansharpen to a COG" in call("bench", "--list").stdout


def test_programs_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = call("bench", "--only", "orfeo,gdal-pansharpen-cog", "--sizes", 256)
    assert result.exit_code == 0, result.output
    assert "orfeo: not measured, the program is not installed (Orfeo ToolBox's BundleToPerfectSensor" in result.stderr
    assert "gdal-pansharpen-cog: not measured" in result.stderr
