"""The quick version of the planted-failure table (docs/quality-gate.md): every failure on real and simulated scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.quality_gate import real_pairs, trials
from simulated_scenes import simulated_scene


@pytest.mark.parametrize("kind", ["simulated", "real"])
def test_planted_failures_are_caught_and_good_results_pass(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "real":
        request.getfixturevalue("shared_data")
        pairs = real_pairs(["PHR_melbourne_arena", "S6_vegetation"])[::-1]
    else:
        pairs = [simulated_scene(0).pair, simulated_scene(3).pair]
    assert len(pairs) == 2
    found = list(trials(pairs, [0], tmp_path))
    assert {one["kind"] for one in found} == {
        "none", "swapped bands", "shift of 2 px", "DN scale 20 % off", "corrupted blocks", "wrong weights",
        "another scene's PAN",
    }  # fmt: skip
    passed = {(one["scene"], one["kind"], one["seed"]) for one in found if one["verdict"] == "pass"}
    assert passed == {(pair.name, "none", 0) for pair in pairs}
    held = [one for one in found if one["kind"] == "another scene's PAN"]
    assert all(one["verdict"] == "hold" for one in held)
