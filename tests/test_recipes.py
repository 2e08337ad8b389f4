"""Runs with different weights or contracts over one ledger and one catalog: every image is of one recipe, its own."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from networks import random_network
from numpy.typing import NDArray
from published_scene import recipe
from small_archive import add_scene, settings_in, silent

from pancrafter import discovery, killpoints, runs, steps
from pancrafter.census import take_census
from pancrafter.changes import ChangeFeed
from pancrafter.compute import Compute
from pancrafter.errors import WeightsError
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.model.names import weights_sha256
from pancrafter.model.weights import save_checkpoint
from pancrafter.models import ensure_model
from pancrafter.plan import make_plan
from pancrafter.publish import StaticSink
from pancrafter.sensors import contracts_of, get_contract
from pancrafter.settings import Settings
from pancrafter.states import State
from pancrafter.store import SceneStore

KEY = "geoeye-1/S1"


def write_contract(folder: Path, **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    changed = get_contract("geoeye-1").model_dump(mode="json") | changes
    (folder / "geoeye-1.yaml").write_text(json.dumps(changed))  # JSON is YAML


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of four blocks, and two sets of weights."""
    root = tmp_path_factory.mktemp("archive")
    add_scene(root / "source", "S1", side_px=256)
    for name, seed in (("a", 1), ("b", 2)):
        save_checkpoint(root / f"{name}.safetensors", random_network(seed, attention="none"), {})
    return root


def settings_of(archive: Path, place: Path, weights: str | Path) -> Settings:
    return settings_in(
        place,
        source=str(archive / "source"),
        contracts_dir=str(place / "contracts"),
        weights=str(archive / weights),
    )


def sharpened_pixels(settings: Settings, ledger: Ledger, report: steps.Report) -> NDArray[np.uint16] | None:
    """The scene as these settings sharpen it; None if it is left to another run."""
    with steps.claimed(ledger, KEY, settings, report) as work:
        if work is None:
            return None
        staged = steps.stage(work, settings, Compute(), ledger)
        steps.sharpen(work, staged, settings, Compute(), ledger, report)
        return SceneStore.open(staged.store_uri).read_sharpened((slice(0, 256), slice(0, 256)))


def test_what_another_run_planned_anew_is_left_to_it(archive: Path, tmp_path: Path) -> None:
    write_contract(tmp_path / "contracts")
    a, b = (settings_of(archive, tmp_path, f"{name}.safetensors") for name in "ab")
    said: list[str] = []
    with open_ledger(a) as ledger:
        assert discovery.discover(a, ledger).eligible == discovery.discover(b, ledger).eligible == (KEY,)
        assert runs.process_scene(KEY, a, Compute(), ledger, said.append) is None
        (row,) = ledger.rows()
        assert (row.state, row.attempts, row.fence) == (State.ELIGIBLE, 0, 0), "nothing was done"
        with steps.claimed(ledger, KEY, b, said.append) as work:
            assert work is not None
    assert said == [f"{KEY}: left to another run, which planned it since with other weights, contract or settings"]


def test_what_a_dead_worker_left_is_made_by_the_recipe_of_the_run_that_finds_it(archive: Path, tmp_path: Path) -> None:
    write_contract(tmp_path / "contracts")
    a, b = (settings_of(archive, tmp_path, f"{name}.safetensors") for name in "ab")
    with open_ledger(a) as ledger:
        discovery.discover(a, ledger)
        (row,) = ledger.rows()
        assert ledger.claim(row.key, "a worker that died", 1e-6, recipe=row.recipe or "") is not None
        assert discovery.discover(b, ledger).eligible == (KEY,)
        with steps.claimed(ledger, KEY, b, silent) as work:
            assert work is not None


def test_blocks_of_an_interrupted_run_are_not_taken_for_those_of_another(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_contract(tmp_path / "contracts")
    a, b = (settings_of(archive, tmp_path, f"{name}.safetensors") for name in "ab")
    said: list[str] = []
    blocks = iter(range(4))

    def stop_at_the_second_block(name: str) -> None:
        if name == "block-done" and next(blocks) == 1:
            raise KeyboardInterrupt

    with open_ledger(a) as ledger:
        discovery.discover(a, ledger)
        monkeypatch.setattr(killpoints, "at", stop_at_the_second_block)
        with pytest.raises(KeyboardInterrupt):
            sharpened_pixels(a, ledger, said.append)
        monkeypatch.undo()
        discovery.discover(b, ledger)
        assert sharpened_pixels(a, ledger, said.append) is None
        found = sharpened_pixels(b, ledger, said.append)
    undisturbed = b.model_copy(update={"state_dir": str(tmp_path / "undisturbed")})
    with open_ledger(undisturbed) as ledger:
        discovery.discover(undisturbed, ledger)
        expected = sharpened_pixels(undisturbed, ledger, silent)
    assert not any("were finished before" in line for line in said)
    assert expected is not None
    assert found is not None
    assert np.array_equal(found, expected)


def test_weights_that_are_replaced_meanwhile_make_no_block(archive: Path, tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    shutil.copy(archive / "a.safetensors", weights)
    write_contract(tmp_path / "contracts")
    settings = settings_of(archive, tmp_path, weights)
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
        with steps.claimed(ledger, KEY, settings, silent) as work:
            staged = steps.stage(work, settings, Compute(), ledger)
            shutil.copy(archive / "b.safetensors", weights)
            with pytest.raises(WeightsError, match="the file was replaced meanwhile"):
                steps.sharpen(work, staged, settings, Compute(), ledger, silent)
    assert not SceneStore.open(staged.store_uri).done_flags().any()
    assert StaticSink(settings.sink).collection_ids() == ()


def test_a_product_is_not_linked_to_the_model_item_of_other_weights(archive: Path, tmp_path: Path) -> None:
    weights, sink = archive / "a.safetensors", StaticSink(str(tmp_path))
    used = recipe(weights="a", weights_sha256=weights_sha256(str(archive / "b.safetensors")))
    with pytest.raises(WeightsError, match="the file was replaced meanwhile"):
        ensure_model(sink, used, str(weights))
    assert sink.collection_ids() == ()
    link = ensure_model(sink, used.model_copy(update={"weights_sha256": weights_sha256(str(weights))}), str(weights))
    assert link is not None
    assert sink.exists("models", link["href"].split("/")[-2])


def one_recipe_after_another(root: Path) -> tuple[Settings, Settings]:
    """A scene, and two runs that differ in their contract, of a classical method."""
    add_scene(root / "source", "S1", side_px=128)
    runs = []
    for name, changes in (("a", {}), ("b", {"dn_max": 2046})):
        write_contract(root / name, weights="none", **changes)
        places = {"source": str(root / "source"), "sink": str(root / "sink"), "state_dir": str(root / "state")}
        runs.append(Settings(**places, contracts_dir=str(root / name), workers=0, block_px=128))
    return runs[0], runs[1]


def current_items(settings: Settings) -> list[str]:
    items = StaticSink(settings.sink).items("geoeye-1-sharpened")
    return [item["id"] for item in items if not item["properties"].get("deprecated")]


def events_of(settings: Settings) -> list[tuple[str, str, str | None]]:
    feed = ChangeFeed(StaticSink(settings.sink).store)
    return [(change.type, change.item_id, change.successor) for change in feed.events()]


def test_a_run_that_only_planned_leaves_the_published_item_as_it_is(tmp_path: Path) -> None:
    """What is published by this recipe is not computed again, although another run had planned to replace it."""
    a, b = one_recipe_after_another(tmp_path)
    runs.run(a, silent)
    (item,) = current_items(a)
    with open_ledger(b) as ledger:
        assert discovery.discover(b, ledger).eligible == (KEY,)
    assert make_plan(a).scenes == 0
    assert runs.run(a, silent) == []
    assert current_items(a) == [item]
    assert events_of(a) == [("new", item, None)]
    (outcome,) = runs.run(b, silent)
    assert outcome.verdict in {"published", "fallback"}


def test_a_nightly_run_leaves_to_another_what_that_is_to_replace(tmp_path: Path) -> None:
    """Such as a backfill with new weights, stopped before it was done: the night's recipe is what is published."""
    a, b = one_recipe_after_another(tmp_path)
    runs.run(a, silent)
    with open_ledger(b) as ledger:
        planned = discovery.discover(b, ledger).eligible
    night = a.model_copy(update={"new_since": datetime.now(UTC) + timedelta(days=1)})
    assert runs.run(night, silent) == []
    with open_ledger(b) as ledger:
        assert runs.process_scene(planned[0], b, Compute(), ledger, silent) is not None


def test_a_lost_ledger_learns_from_the_catalog_what_is_published(tmp_path: Path) -> None:
    a, b = one_recipe_after_another(tmp_path)
    runs.run(a, silent)
    shutil.rmtree(a.state_dir)
    assert make_plan(a).scenes == 0
    assert runs.run(a, silent) == []
    with open_ledger(a) as ledger:
        (row,) = ledger.rows()
        assert (row.state, row.output_item_id) == (State.CONFIRMED, *current_items(a))
    runs.run(b, silent)
    shutil.rmtree(a.state_dir)
    assert make_plan(a).scenes == 1
    (outcome,) = runs.run(a, silent)
    assert outcome.verdict in {"published", "fallback"}, "what is superseded is not taken for current"


def test_there_and_back_again_leaves_the_last_one_current(tmp_path: Path) -> None:
    a, b = one_recipe_after_another(tmp_path)
    made = []
    for settings in (a, b, a, b):
        runs.run(settings, silent)
        (item,) = current_items(settings)
        made.append(item)
        time.sleep(1)  # items tell in whole seconds when they were made: of one second they look as made once
    first, second = made[:2]
    assert made == [first, second, first, second]
    assert first != second
    assert events_of(a) == [
        ("new", first, None),
        *(("new", second, None), ("superseded", first, second)),
        *(("new", first, None), ("superseded", second, first)),
        *(("new", second, None), ("superseded", first, second)),
    ]
    assert take_census(b).clean
    assert ChangeFeed(StaticSink(b.sink).store).repair(StaticSink(b.sink)) == ()


def test_an_output_that_is_gone_can_be_superseded(tmp_path: Path) -> None:
    a, b = one_recipe_after_another(tmp_path)
    runs.run(a, silent)
    shutil.rmtree(a.sink)
    (outcome,) = runs.run(b, silent)
    assert outcome.verdict in {"published", "fallback"}
    (item,) = current_items(b)
    assert events_of(b) == [("new", item, None)]


def test_a_scene_is_finished_by_the_contract_it_was_begun_with(archive: Path, tmp_path: Path) -> None:
    write_contract(tmp_path / "contracts", weights="none")
    settings = settings_of(archive, tmp_path, "a.safetensors")
    begun_with = contracts_of(settings)["geoeye-1"].digest
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
        with steps.claimed(ledger, KEY, settings, silent) as work:
            staged = steps.stage(work, settings, Compute(), ledger)
            write_contract(tmp_path / "contracts")
            sharpened = steps.sharpen(work, staged, settings, Compute(), ledger, silent)
            assessed = steps.assess(work, staged, sharpened, settings, Compute(), ledger, silent)
            steps.publish(work, staged, assessed, settings, ledger, silent)
        assert discovery.discover(settings, ledger).eligible == (KEY,), "the new contract is for the next run"
    (item,) = StaticSink(settings.sink).items("geoeye-1-sharpened")
    assert sharpened.method == "mtf-glp-fs"
    assert item["properties"]["pancrafter:recipe"]["contract_digest"] == begun_with
