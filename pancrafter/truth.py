"""How near a result comes to the truth, which the source catalogs of simulated scenes hold."""

from __future__ import annotations

from pathlib import Path

from pancrafter import classical
from pancrafter.compute import Compute
from pancrafter.engine import scene_mtfs
from pancrafter.metrics import ergas, fill_invalid, q2n, sam_deg
from pancrafter.reading import read_raster
from pancrafter.resample import Mtf
from pancrafter.sensors import SensorContract
from pancrafter.settings import Settings
from pancrafter.store import SceneStore, whole_window
from pancrafter.tiles import band_phases, quantise, valid_window
from pancrafter.types import StagedScene, TruthScores


def score_against_truth(
    staged: StagedScene, settings: Settings, method: str, contract: SensorContract, compute: Compute
) -> tuple[TruthScores, ...]:
    """Scores of the result and of every classical method where the source catalog holds the truth (simulated scenes).

    The first entry is the published result; the others are sorted from best to worst ERGAS.
    """
    path = Path(settings.source)
    folder = path if path.is_dir() else path.parent
    truth = folder / "truth" / f"{staged.scene.item_id}.tif"
    if "://" in settings.source or not truth.is_file():
        return ()
    mtfs = scene_mtfs(staged, contract)
    methods = [None, *(name for name in classical.METHODS if name != method)]
    scores = list(compute.map(_truth_task, methods, staged.store_uri, str(truth), mtfs, method))
    ours = next(score for score in scores if score.method == method)
    return (ours, *sorted((s for s in scores if s is not ours), key=lambda score: score.ergas))


def _truth_task(
    classical_method: str | None, uri: str, truth: str, mtfs: tuple[Mtf, ...], published_method: str
) -> TruthScores:
    """On a worker: compare the stored result, or one classical method run on the staged pair, with the truth."""
    store = SceneStore.open(uri)
    staged = store.staged
    everything = whole_window(store.pan_shape_yx)
    valid = valid_window(store, everything)
    if classical_method is None:
        image = store.read_sharpened(everything)
    else:
        pair = classical.PairInput(
            store.read_pan(everything),
            store.read_ms(whole_window(store.ms_shape_yx)),
            staged.grid.ratio,
            band_phases(staged),
            mtfs,
            valid=valid,
            dn_max=staged.dn_max,
        )
        image = quantise(classical.sharpen(classical_method, pair), valid, staged)
    y, x = staged.grid.pan_offset_yx
    reference = read_raster(truth)[:, y : y + valid.shape[0], x : x + valid.shape[1]].astype("float64")
    ratio = staged.grid.ratio
    filled_reference, filled_image = fill_invalid(reference, valid), fill_invalid(image, valid)
    return TruthScores(
        method=classical_method or published_method,
        ergas=ergas(reference, image, ratio, valid),
        sam_deg=sam_deg(reference, image, valid),
        q2n=q2n(filled_reference, filled_image),
    )
