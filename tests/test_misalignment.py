"""The injected shift is the shift that MS has, and only that; tables and plots say what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call, fails
from networks import random_checkpoint, random_network
from PIL import Image
from test_evaluate import pair_of

from pancrafter.engine import NetworkSharpener
from pancrafter.errors import InvalidSceneError, SinkError
from pancrafter.evaluate import Method, classical_method, network_method
from pancrafter.misalignment import SHIFTS_MS_PX, Curve, markdown_table, measure, plot, without_attention
from pancrafter.model.weights import save_checkpoint
from pancrafter.pairs import Pair, Unreadable
from pancrafter.tiles import Tile


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    pair = pair_of(side_ms=96)
    return measure([pair, pair], [classical_method("exp"), classical_method("gsa")])


def test_a_shift_that_nobody_is_told_costs_more_the_larger_it_is(curves: list[Curve]) -> None:
    for curve in (c for c in curves if c.series == "untold"):
        assert list(curve.ergas) == sorted(curve.ergas)
        assert curve.rise_at_one > 0
        assert curve.rise_bands_apart > 0


def test_a_measured_shift_costs_next_to_nothing(curves: list[Curve]) -> None:
    by = {(c.method, c.series): c for c in curves}
    for method in ("exp", "gsa"):
        assert by[method, "measured"].rise_at_one < 0.2 * by[method, "untold"].rise_at_one


def test_only_ms_moves_and_by_the_stated_amount() -> None:
    """Methods see one PAN throughout, and MS at the stated distance from where it was."""
    seen: list[Tile] = []

    def watch(tile: Tile, *_gains: object) -> np.ndarray:
        seen.append(tile)
        return np.zeros((2, *tile.pan.shape), np.float32)

    measure([pair_of(side_ms=96)], [Method("watch", watch)])
    untold, measured = seen[::2], seen[1::2]
    assert len(untold) == len(SHIFTS_MS_PX) + 1
    assert all(np.array_equal(tile.pan, untold[0].pan) for tile in seen)
    assert all(tile.phases_yx == ((1.5, 1.5),) * 2 for tile in untold)
    found = np.array(measured[SHIFTS_MS_PX.index(1.0)].phases_yx) - 1.5
    np.testing.assert_allclose(np.hypot(*found.T), 4.0, atol=0.3)
    apart = np.array(measured[-1].phases_yx)
    assert np.hypot(*(apart[1] - apart[0])) == pytest.approx(1.5, abs=0.3)


def test_attention_is_off_when_its_gates_are_zero() -> None:
    network = NetworkSharpener(random_checkpoint(attention="all"))
    off = without_attention(network)
    gates = [p for name, p in off.checkpoint.network.named_parameters() if "select_" in name]
    assert gates
    assert not any(bool(p.any()) for p in gates)
    assert all(bool(p.any()) for name, p in network.checkpoint.network.named_parameters() if "select_" in name)
    other = {k: v for k, v in network.checkpoint.network.state_dict().items() if "select_" not in k}
    assert all(torch.equal(v, off.checkpoint.network.state_dict()[k]) for k, v in other.items())


def test_table_and_plot(curves: list[Curve], tmp_path: Path) -> None:
    table = markdown_table(curves, "untold").splitlines()
    assert len(table) == 4
    assert {line.count("|") for line in table} == {len(SHIFTS_MS_PX) + 5}
    assert f"{curves[0].ergas[0]:.2f}" in table[2]
    with pytest.raises(SinkError, match="No space left on device"):
        plot(curves, Path("/dev/full"))
    plot(curves, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert len(image.convert("RGB").getcolors(100_000) or []) > 4
    for name, kind in (("plot.JPG", "JPEG"), ("plot", "PNG"), ("plot.txt", "PNG")):
        plot(curves, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == kind


def test_pairs_that_cannot_be_measured_are_named_and_none_is_an_error() -> None:
    with pytest.raises(InvalidSceneError, match=r"no pair could be measured; the last: pair: ms of \(32, 32\) px"):
        measure([pair_of(side_ms=32)], [classical_method("exp")])
    three = network_method("net", NetworkSharpener(random_checkpoint(bands=3, attention="none")))
    with pytest.raises(InvalidSceneError, match="take 3 bands at once, the scene has 2"):
        measure([pair_of(side_ms=64)], [three])
    good = pair_of(side_ms=64)
    empty = replace(good, name="empty", ms=good.ms * np.array([[[1]], [[0]]], np.uint16))
    said: list[Pair | Unreadable] = []
    measure([empty, good], [classical_method("exp")], report=said.append)
    assert isinstance(said[0], Unreadable)
    assert "the reference mean of band index 1 is 0" in said[0].reason
    assert said[1] is good


def test_a_plot_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    said = fails(2, "misalignment", tmp_path, "--plot", "/nowhere/a.png")
    assert "--plot /nowhere/a.png: cannot be written" in said


def test_command_prints_both_series_and_goes_on_past_a_damaged_pair(tmp_path: Path) -> None:
    pair = pair_of(side_ms=64)
    np.savez(tmp_path / "pair.npz", pan=pair.pan, ms=pair.ms)
    (tmp_path / "torn.npz").write_bytes(b"PK")
    save_checkpoint(tmp_path / "w.safetensors", random_network(attention="bottleneck"), {})
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    result = call("misalignment", tmp_path, "--weights", tmp_path / "w.safetensors", "--json", out, "--plot", picture)
    assert result.exit_code == 1
    assert "skipped torn:" in result.stderr
    assert "| pan-crafter, CM3A off |" in result.stdout
    assert len(json.loads(out.read_text())) == 2 * 9
    assert picture.is_file()
