"""The table scores what the pipeline's own sharpeners produce, and one bad pair stops nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import call
from networks import random_checkpoint, random_network
from numpy.typing import NDArray
from PIL import Image
from small_archive import add_scene
from staged_scenes import landscape

from pancrafter import classical, metrics
from pancrafter.assess import reduce_tile
from pancrafter.engine import NetworkSharpener
from pancrafter.errors import InvalidSceneError, PancrafterError
from pancrafter.evaluate import (
    AS_SHARP_AS_MS,
    Method,
    PairReport,
    ReferenceScores,
    classical_method,
    evaluate_all,
    evaluate_pair,
    network_method,
    sharpen_tile,
    summarise,
    tile_of,
)
from pancrafter.model.weights import save_checkpoint
from pancrafter.pairs import Pair, Unreadable
from pancrafter.resample import degrade

Array = NDArray[Any]


def pair_of(ratio: int = 4, side_ms: int = 48, bands: int = 2, **changes: Any) -> Pair:
    n = side_ms * ratio
    truth = np.stack([landscape((n, n), 5 + 10 * band) + landscape((n, n), 5) for band in range(bands)])
    phase = ((ratio - 1) / 2 + 0.4, (ratio - 1) / 2 - 0.3)
    ms = np.stack([degrade(band, (side_ms, side_ms), ratio, phase, 0.3) for band in truth])
    pair = Pair(
        name="pair",
        sensor="generic",
        bands=tuple(f"band-{i}" for i in range(bands)),
        pan=truth.mean(0).astype(np.uint16),
        ms=ms.astype(np.uint16),
        ratio=ratio,
        phases_yx=(phase,) * bands,
        nominal_gains=(0.3,) * bands,
        pan_gain=0.2,
        dn_max=8191,
    )
    return replace(pair, **changes)


@pytest.fixture(scope="module")
def sharpener() -> NetworkSharpener:
    return NetworkSharpener(random_checkpoint(attention="none"))


@pytest.mark.parametrize(("ratio", "injected"), [(2, True), (3, False), (4, True)])
def test_blocks_equal_the_whole_pair(ratio: int, *, injected: bool) -> None:
    tile = tile_of(pair_of(ratio, side_ms=22))
    network = NetworkSharpener(random_checkpoint(attention="none", injected_detail=injected))
    sharpener = network.fitted_to(tile, (0.3, 0.3), 0.2)
    assert (sharpener.injection is not None) == injected
    whole = sharpen_tile(sharpener, tile, block_px=10_000)
    np.testing.assert_allclose(sharpen_tile(sharpener, tile, block_px=24), whole, atol=1e-2 * whole.std())
    inside = sharpener(tile)[:, 40:-40, 40:-40] if ratio == 4 else None
    assert whole.shape == (2, *tile.pan.shape)
    if inside is not None and inside.size:
        assert np.corrcoef(inside.ravel(), whole[:, 40:-40, 40:-40].ravel())[0, 1] > 0.9


def test_pixels_at_the_ceiling_do_not_count_in_a_pairs_fit() -> None:
    """As in the pipeline: what clouds at the ceiling of PAN make of the bands' mix holds nowhere else."""
    clear = pair_of(side_ms=64)
    pan, ms = clear.pan.astype(np.float64), clear.ms.astype(np.float64)
    pan[64:128, 64:128], ms[:, 16:32, 16:32] = clear.dn_max, 2 * ms[:, 16:32, 16:32] + 50 * np.arange(2)[:, None, None]
    cloudy = replace(clear, pan=np.rint(pan).astype(np.uint16), ms=np.rint(ms).astype(np.uint16))
    network = NetworkSharpener(random_checkpoint(attention="none", injected_detail=True))
    tiles = tile_of(clear), tile_of(cloudy), replace(tile_of(cloudy), dn_max=2 * clear.dn_max)
    fits = [network.fitted_to(tile, (0.3, 0.3), 0.2).injection for tile in tiles]
    expected, found, misled = (fit.weights for fit in fits if fit is not None)
    assert found == pytest.approx(expected, abs=0.05)
    assert misled != pytest.approx(expected, abs=0.2)
    reduced = reduce_tile(tiles[1], (0.3, 0.3), 0.3)
    assert reduced is not None
    assert reduced.tile.dn_max == clear.dn_max


def test_a_network_is_told_that_less_is_uncertain_one_scale_down() -> None:
    """MS was degraded by a known MTF, and shifts are off by less of a pixel; results follow what is told."""
    checkpoint = random_checkpoint(attention="none", told_uncertainty=True)
    full = tile_of(pair_of(side_ms=64))
    reduced = reduce_tile(full, (0.3, 0.3), 0.3)
    assert reduced is not None
    tile = reduced.tile
    assert (full.uncertainty, tile.uncertainty) == (1, 1 / 4)
    network = NetworkSharpener(checkpoint).fitted_to(full, (0.3, 0.3), 0.2).one_scale_down((0.3, 0.3))
    assert network.relative_mtf == NetworkSharpener(checkpoint).fitted_to(tile, (0.3, 0.3), AS_SHARP_AS_MS).relative_mtf
    result = network(tile)
    assert np.abs(result - network(replace(tile, uncertainty=1.0))).max() > 1e-3 * result.std()


def test_scores_are_those_of_metrics_on_the_methods_own_result() -> None:
    pair = pair_of()
    report = evaluate_pair(pair, [classical_method("mtf-glp-fs")])
    assert report.reduced is not None
    assert report.full is not None
    pan, ms = pair.pan.astype(np.float32), pair.ms.astype(np.float32)
    given = classical.PairInput(pan, ms, 4, pair.phases_yx, pair.mtfs)
    result = classical.sharpen("mtf-glp-fs", given).clip(0, pair.dn_max)
    full = report.full["mtf-glp-fs"]
    published = metrics.hqnr(result, pair.pan, pair.ms, 4, pair.nominal_gains)
    assert (full.d_lambda, full.d_s, full.hqnr) == (published.d_lambda, published.d_s, published.hqnr)
    ergas, sam = metrics.consistency(result, pair.ms, 4, pair.phases_yx, pair.mtfs)
    assert (full.consistency_ergas, full.consistency_sam_deg) == (ergas, sam)
    assert full.aligned_hqnr > full.hqnr  # the published index calls a corrected shift distortion


def test_wald_compares_with_the_pairs_own_ms() -> None:
    """A contestant that returns the truth scores perfectly, whatever shift PAN and MS have."""
    pair = pair_of(side_ms=64)

    def oracle(tile: Any, gains: tuple[float, ...], pan_gain: float) -> Array:
        assert pan_gain == AS_SHARP_AS_MS
        assert tile.phases_yx == ((1.5, 1.5),) * 2
        assert tile.pan.shape == (64, 64)
        assert tile.ms.shape == (2, 16, 16)
        # PAN is sampled where the truth lies: it explains the mean of the bands without any shift
        np.testing.assert_allclose(tile.pan[8:-8, 8:-8], pair.ms.mean(0)[8:-8, 8:-8], rtol=0.02)
        return pair.ms.astype(np.float32)

    report = evaluate_pair(pair, [Method("oracle", oracle)], full=False)
    assert report.truth == "wald"
    assert report.full is None
    assert report.reduced is not None
    scores = report.reduced["oracle"]
    assert (scores.ergas, scores.sam_deg, scores.psnr_db) == (0, pytest.approx(0, abs=1e-4), None)
    assert (scores.q2n, scores.scc, scores.ssim) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("ratio", "reduced_ratio"), [(2, 3), (2, 4), (4, 3), (4, 2)])
def test_ms_can_be_degraded_by_another_ratio(ratio: int, reduced_ratio: int) -> None:
    report = evaluate_pair(pair_of(ratio, 96), [classical_method("gsa")], reduced_ratio=reduced_ratio, full=False)
    assert report.reduced_ratio == reduced_ratio
    assert report.reduced is not None


def test_given_truth_is_used_as_it_is() -> None:
    pair = pair_of(bands=1)
    pair = replace(pair, truth=pair.pan[None], phases_yx=((1.5, 1.5),))
    report = evaluate_pair(pair, [Method("copy of pan", lambda tile, *_: tile.pan[None])], full=False)
    assert report.truth == "given"
    assert report.reduced is not None
    assert report.reduced["copy of pan"].ergas == 0


def test_benchmark_pairs_are_cropped_as_published() -> None:
    truth = np.stack([landscape((256, 256), seed) for seed in (1, 2)]).astype(np.float32)
    wrong = truth.copy()
    for border in (slice(0, 20), slice(-21, None)):
        wrong[:, border] += 500
        wrong[:, :, border] += 500
    pair = pair_of(bands=2, side_ms=64, truth=truth, protocol="benchmark", phases_yx=((2.0, 2.0),) * 2)
    report = evaluate_pair(pair, [Method("m", lambda *_: wrong)])
    assert report.full is None
    assert report.reduced is not None
    assert report.reduced["m"].ergas == 0
    assert report.phase_px == 2
    wrong[:, 20, 128] += 1
    assert evaluate_pair(pair, [Method("m", lambda *_: wrong)]).reduced["m"].ergas > 0  # type: ignore[index]


def test_ratio_three_has_no_published_full_resolution_index() -> None:
    report = evaluate_pair(pair_of(3), [classical_method("exp")])
    assert report.full is not None
    assert report.full["exp"].hqnr is None
    assert 0 < report.full["exp"].aligned_hqnr <= 1


def test_results_are_clipped_before_they_are_scored() -> None:
    pair = pair_of(bands=1, dn_max=5000)
    results = [np.full(pair.ms.shape, value, np.float32) for value in (60_000, 5000)]
    scores = [
        evaluate_pair(pair, [Method("m", lambda *_, r=result: r)], full=False).reduced  # type: ignore[misc]
        for result in results
    ]
    assert scores[0] == scores[1]


def test_exp_of_the_benchmark_is_its_own_interpolator() -> None:
    """EXP of published tables is lms, the 23-tap filter; elsewhere it is cubic."""
    truth = np.stack([landscape((256, 256), 5 + 10 * band) for band in range(2)]).astype(np.uint16)
    pair = pair_of(bands=2, side_ms=64, truth=truth, protocol="benchmark", phases_yx=((2.0, 2.0),) * 2)
    lms = Method("lms", lambda tile, *_: metrics.poly_upsample(tile.ms, 4).astype(np.float32))
    for one in (pair, replace(pair, truth=None)):
        report = evaluate_pair(one, [classical_method("exp"), lms])
        scores = report.reduced or report.full
        assert scores is not None
        assert scores["exp"] == scores["lms"]
    elsewhere = evaluate_pair(pair_of(), [classical_method("exp"), lms], full=False).reduced
    assert elsewhere is not None
    assert elsewhere["exp"] != elsewhere["lms"]


def test_networks_trained_on_the_benchmark_see_dn_scaled_by_the_ceiling(sharpener: NetworkSharpener) -> None:
    trained = replace(sharpener.checkpoint, training={"config": {"pancollection": {"train": ["x.h5"]}}})
    assert not network_method("n", sharpener).fixed_ranges
    assert network_method("n", NetworkSharpener(trained)).fixed_ranges
    ranges = tile_of(pair_of(), fixed_ranges=True)
    assert {(r.low, r.high) for r in (ranges.pan_range, *ranges.ms_ranges)} == {(0, 8191)}


def test_standing_counts_wins_against_the_best_classical_of_each_pair() -> None:
    def scores(ergas: float, sam: float) -> ReferenceScores:
        return ReferenceScores(ergas=ergas, sam_deg=sam, q2n=1, scc=1, psnr_db=30, ssim=1)

    report = evaluate_pair(pair_of(), [classical_method("exp")], full=False)
    rows = [
        {"net": scores(1.0, 3.0), "exp": scores(0.1, 0.1), "gsa": scores(2.0, 2.0), "brovey": scores(4.0, 4.0)},
        {"net": scores(3.0, 1.0), "exp": scores(9.0, 9.0), "gsa": scores(4.0, 4.0), "brovey": scores(2.0, 2.0)},
    ]
    rows[0]["gsa"] = rows[0]["gsa"].model_copy(update={"psnr_db": None})
    reports = [
        report.model_copy(update={"reduced": row, "grade": grade}) for row, grade in zip(rows, "AB", strict=True)
    ]
    assert [r.best_classical() for r in reports] == ["gsa", "brovey"]
    result = summarise(reports, [], ["net"], {})
    standing = result.summary["net"]
    assert standing.pairs == 2
    assert standing.mean_ergas_gain == pytest.approx((0.5 - 0.5) / 2)
    assert standing.gain_of_mean_ergas == pytest.approx(1 - 4 / 4)
    assert (standing.won_ergas, standing.won_sam, standing.won_both) == (0.5, 0.5, 0)
    assert result.summary_by_grade["A"]["net"].won_ergas == 1
    assert result.means["net"]["ergas"] == 2
    assert result.means["net"]["hqnr"] is None
    assert result.means["gsa"]["psnr_db"] == 30


def test_one_bad_pair_stops_nothing_nor_does_one_of_other_bands() -> None:
    good, small = pair_of(), pair_of(side_ms=16, name="small")
    methods = [classical_method("exp")]
    found = list(evaluate_all([small, Unreadable("lost", "gone"), good], methods, full=False))
    assert [type(entry).__name__ for entry in found] == ["Unreadable", "Unreadable", "PairReport"]
    with pytest.raises(InvalidSceneError, match="none of 1 pairs could be scored: lost: gone"):
        summarise([], [Unreadable("lost", "gone")], [], {})
    three = network_method("net", NetworkSharpener(random_checkpoint(bands=3, attention="none")))
    refused, scored = evaluate_all([good, pair_of(bands=3)], [three], full=False)
    assert isinstance(refused, Unreadable)
    assert "take 3 bands at once, the scene has 2" in refused.reason
    assert isinstance(scored, PairReport)
    for_nothing = Method("slow", lambda *_: pytest.fail("work for a pair that is refused"))
    refused = evaluate_all([Unreadable("lost", "gone"), good, small], [for_nothing, three])
    assert [(type(pair), pair.name) for pair in refused] == [(Unreadable, name) for name in ("lost", "pair", "small")]
    with pytest.raises(PancrafterError, match="no method 'magic'; choose pan-crafter, all, or one of exp"):
        classical_method("magic")


def test_pairs_of_one_name_are_told_apart() -> None:
    lost = Unreadable("pair", "gone")
    pairs = [replace(lost, name="pair (2)"), pair_of(), lost, pair_of(), replace(lost, name="pair (2)")]
    found = list(evaluate_all(pairs, [classical_method("exp")], full=False))
    assert [entry.name for entry in found] == ["pair (2)", "pair", "pair (3)", "pair (4)", "pair (2) (2)"]


def test_item_ids_may_have_slashes(tmp_path: Path) -> None:
    evaluate_pair(pair_of(name="tile/1"), [classical_method("exp")], full=False, pictures=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tile_1.png"]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two readable pairs of different grade, a damaged one, and weights."""
    path = tmp_path_factory.mktemp("pairs")
    for name, grade in (("one", "A"), ("two", "A-")):
        pair = pair_of(side_ms=48)
        np.savez(path / f"{name}.npz", pan=pair.pan, ms=pair.ms)
        (path / f"{name}.json").write_text(json.dumps({"quality": grade, "bit_depth": 13}))
    (path / "torn.npz").write_bytes(b"PK")
    save_checkpoint(path / "tiny.safetensors", random_network(attention="none"), {})
    save_checkpoint(path / "other.safetensors", random_network(1, attention="none"), {})
    return path


def test_command_writes_every_figure_and_reports_the_damaged_pair(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = call("evaluate", folder, "--method", "all", "--weights", folder / "tiny.safetensors", "--json", out)
    assert result.exit_code == 1
    assert "skipped torn:" in result.stderr
    assert "means over 2 pairs" in result.stdout
    assert "pan-crafter, A and A- (2)" in result.stdout
    written = json.loads(out.read_text())
    assert list(written["means"]) == ["pan-crafter", *classical.METHODS]
    assert [pair["name"] for pair in written["pairs"]] == ["one", "two"]
    assert set(written["failed"]) == {"torn"}
    assert len(written["weights"]["pan-crafter"]) == 64
    assert written["pairs"][0]["phase_px"] == 1.5
    assert all(value is not None for value in written["means"]["gsa"].values())


def test_command_passes_over_descriptions_that_a_shell_found(folder: Path) -> None:
    result = call("evaluate", folder / "one.json", folder / "one.npz", "--method", "exp", "--no-full")
    assert result.exit_code == 1
    assert "one.json: no STAC document" in result.stderr
    assert "means over 1 pair" in result.stdout


def test_command_takes_single_methods_and_several_weights(folder: Path) -> None:
    both = ("--weights", folder / "tiny.safetensors", "--weights", folder / "other.safetensors")
    result = call("evaluate", folder / "one.npz", "--method", "exp,pan-crafter", *both, "--no-full", "--json", "-")
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.stdout)["means"]) == ["exp", "pan-crafter/tiny", "pan-crafter/other"]


def test_command_draws_what_networks_make_of_a_pair(folder: Path, tmp_path: Path) -> None:
    options = ("--method", "gsa,pan-crafter", "--weights", folder / "tiny.safetensors", "--no-full")
    result = call("evaluate", folder / "one.npz", *options, "--pictures", tmp_path / "new" / "folder", "--json", "-")
    assert result.exit_code == 0, result.output
    pixels = np.asarray(Image.open(tmp_path / "new" / "folder" / "one.png"))
    side = pair_of(side_ms=48).pan.shape[0]
    assert pixels.shape == (side + 26, 5 * side + 4 * 4, 3), "PAN, MS, exp, gsa, network"
    panels = [pixels[26:, left : left + side].astype(int) for left in range(0, 5 * side, side + 4)]
    ms = panels[1].reshape(side // 4, 4, side // 4, 4, 3)
    assert (ms == ms[:, :1, :, :1]).all(), "MS as delivered, one block per pixel"
    assert all((a != b).any() for a, b in pairwise(panels))


def test_command_takes_catalogs_and_of_them_what_is_named(tmp_path: Path) -> None:
    for item_id in ("scene", "other"):
        add_scene(tmp_path, item_id, side_px=256, seed=1)
    words = ("evaluate", tmp_path, "--method", "exp", "--no-full", "--json", "-", "--name")
    result = call(*words, "sc*")
    assert result.exit_code == 0, result.output
    (pair,) = json.loads(result.stdout)["pairs"]
    assert (pair["name"], pair["sensor"], pair["truth"]) == ("scene", "geoeye-1", "wald")
    result = call(*words, "zzz*")
    assert result.exit_code == 1
    assert f"{tmp_path}: no item zzz* in it" in result.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("nowhere",), "nowhere: no such file or folder"),
        (("nowhere.h5",), "nowhere.h5: no such file or folder"),
        (("PAIRS", "--method", "magic"), "no method 'magic'"),
        (("PAIRS", "--weights", "absent"), "weights 'absent' not found"),
        (("PAIRS", "--method", "gsa", "--weights", "absent"), "--weights: is about the network"),
        (("PAIRS", "--method", "gsa", "--adapt"), "--adapt: is about the network"),
        (("PAIRS", "--name", "zzz*"), "no zzz*.npz or zzz*_pan.tif in it"),
        (("PAIRS", "--json", "/nowhere/out.json"), "cannot be written"),
        (("PAIRS", "--pictures", "/dev/null/pictures"), "--pictures /dev/null/pictures: cannot be made"),
    ],
)
def test_command_refuses_what_cannot_work(folder: Path, words: tuple[str, ...], problem: str) -> None:
    result = call("evaluate", *(folder if word == "PAIRS" else word for word in words))
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert problem in result.stderr.splitlines()[-1]


def test_a_report_that_does_not_fit_on_the_disk_is_named(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.symlink_to("/dev/full")
    result = call("evaluate", folder, "--method", "exp", "--no-full", "--json", report)
    assert result.exit_code == 2
    assert f"--json {report}: cannot be written ([Errno 28] No space left on device)" in result.stderr


@pytest.mark.parametrize("before", [None, "of another run\n"])
def test_a_command_that_fails_leaves_the_report_as_it_was(folder: Path, tmp_path: Path, before: str | None) -> None:
    report = tmp_path / "report.json"
    if before is not None:
        report.write_text(before)
    assert call("evaluate", folder, "--weights", "absent", "--json", report).exit_code == 2
    assert (report.read_text() if report.exists() else None) == before
    link = tmp_path / "latest.json"
    link.symlink_to(tmp_path / "new.json")
    assert call("evaluate", folder, "--weights", "absent", "--json", link).exit_code == 2
    assert link.is_symlink()
    assert not link.exists()
