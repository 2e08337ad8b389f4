"""The gate in the path of a scene: hold, release, reject, fallback; announcements; model items; making again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pystac
import pytest
from networks import random_checkpoint, random_network
from small_archive import add_scene, settings_in, silent
from typer.testing import CliRunner

from pancrafter import discovery, engine, runs, steps
from pancrafter.changes import ChangeFeed
from pancrafter.cli import app
from pancrafter.compute import Compute
from pancrafter.engine import fit_sharpener
from pancrafter.errors import WorkerLostError
from pancrafter.ledger import open_ledger
from pancrafter.model.weights import load_checkpoint, save_checkpoint
from pancrafter.publish import StaticSink
from pancrafter.sensors import get_contract
from pancrafter.settings import Settings
from pancrafter.validation import validate_document, validate_item


def settings_with(root: Path, **rule: object) -> Settings:
    """A run whose GeoEye-1 contract has these limits."""
    contract = get_contract("geoeye-1")
    contracts = root / "contracts"
    contracts.mkdir(exist_ok=True)
    changed = contract.model_dump(mode="json") | {"quality": contract.quality.model_dump() | rule}
    (contracts / "geoeye-1.yaml").write_text(json.dumps(changed))  # JSON is YAML
    return settings_in(root, contracts_dir=str(contracts))


def command(*words: str) -> str:
    run = CliRunner().invoke(app, list(words))
    assert run.exit_code == 0, run.output
    return run.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    add_scene(tmp_path / "source", "scene", side_px=256)
    return tmp_path


def items_of(settings: Settings) -> dict[str, dict]:
    return {item["id"]: item for item in StaticSink(settings.sink).items("geoeye-1-sharpened")}


def test_held_scene_waits_is_released_and_says_so(source: Path) -> None:
    settings = settings_with(source, max_consistency=0.001, max_of_detail=0, on_miss="hold")
    (outcome,) = runs.run(settings, silent)
    assert (outcome.verdict, outcome.failed) == ("held", False)
    assert "consistency ERGAS" in outcome.reason
    assert StaticSink(settings.sink).collection_ids() == ()
    assert runs.run(settings, silent) == []
    state = ("--state-dir", settings.state_dir)
    (listed,) = json.loads(command("held", "list", "--json", *state))
    assert listed["reason"] == outcome.reason
    assert "0 held" in command("held", "list", "--sink", str(source / "other"), *state)
    command("held", "release", "scene", "--reason", "looked at it: fine", *state)
    (outcome,) = runs.run(settings, silent)
    assert outcome.verdict == "published"
    (item,) = items_of(settings).values()
    assert item["properties"]["pancrafter:gate"] == {
        "verdict": "released", "reason": outcome.reason, "released_because": "looked at it: fine",
    }  # fmt: skip
    assert "released by a person" in item["properties"]["title"]
    assert [change.type for change in ChangeFeed(StaticSink(settings.sink).store).events()] == ["new"]
    assert "0 held" in command("held", "list", *state)


def test_rejected_scene_stays_away(source: Path) -> None:
    settings = settings_with(source, max_consistency=0.001, max_of_detail=0, on_miss="hold")
    runs.run(settings, silent)
    state = ("--state-dir", settings.state_dir)
    command("held", "reject", "scene", "--reason", "clouds", *state)
    assert runs.run(settings, silent) == []
    assert "rejected" in command("ledger", "show", "scene", *state)


def test_classical_result_stands_in_and_is_held_when_it_fails_too(source: Path) -> None:
    (outcome,) = runs.run(settings_with(source, min_gain=5.0), silent)
    assert outcome.verdict == "fallback"
    (item,) = items_of(settings_with(source)).values()
    assert item["properties"]["pancrafter:gate"]["verdict"] == "fallback"
    assert "classical fallback" in item["properties"]["title"]
    recipe = item["properties"]["pancrafter:recipe"]
    assert (recipe["method"], recipe.get("weights"), recipe.get("weights_sha256")) == ("mtf-glp-fs", None, None)
    (outcome,) = runs.run(settings_with(source, max_consistency=0.001, max_of_detail=0), silent)
    assert outcome.verdict == "held"
    assert outcome.reason.startswith("network: consistency ERGAS")
    assert "mtf-glp-fs: consistency ERGAS" in outcome.reason


class _LosesWorkers(Compute):
    """Loses its workers once, when the map of a number begins."""

    begun, lost_at = 0, 0

    def map(self, *args: Any, **options: Any) -> Iterator[Any]:
        self.begun += 1
        if self.begun == self.lost_at:
            raise WorkerLostError("a worker was lost")
        return super().map(*args, **options)


@pytest.mark.parametrize("lost_at", [3, 4])
def test_assessing_again_judges_the_classical_result_that_stood_in(
    source: Path, lost_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect calls the step anew as it was called first: workers lost while that result is made, or is measured."""
    settings, compute, fitted = settings_with(source, min_gain=5.0), _LosesWorkers(), list[str]()

    def fit(store: Any, contract: Any, method: Any, **given: Any) -> engine.SharpenerSpec:
        fitted.append(method)
        return fit_sharpener(store, contract, method, **given)

    monkeypatch.setattr(engine, "fit_sharpener", fit)
    with open_ledger(settings) as ledger:
        (key,) = discovery.discover(settings, ledger).eligible
        with steps.claimed(ledger, key, settings, silent) as work:
            assert work is not None
            staged = steps.stage(work, settings, compute, ledger)
            sharpened = steps.sharpen(work, staged, settings, compute, ledger, silent)
            compute.begun, compute.lost_at = 0, lost_at
            with pytest.raises(WorkerLostError):
                steps.assess(work, staged, sharpened, settings, compute, ledger, silent)
            assessed = steps.assess(work, staged, sharpened, settings, compute, ledger, silent)
    assert (assessed.gate.verdict, assessed.sharpened.fallback) == ("fallback", True)
    assert assessed.sharpened.method == "mtf-glp-fs"
    assert fitted == ["pan-crafter", "mtf-glp-fs", "mtf-glp-fs"], "the network is not fitted again to be measured"
    assert "gain over the classical result" in assessed.gate.reason


def test_product_links_its_model_and_is_made_again_with_another(source: Path) -> None:
    settings = settings_with(source, min_gain=-1000.0, max_consistency=1e6, max_consistency_sam_deg=360, max_bias=1e6,
                             max_band_confusion=1e6, max_block=10, max_displacement_px=1e6, min_hqnr=-10,
                             max_residual_shift_px=1e6, min_detail_correlation=0)  # fmt: skip
    runs.run(settings, silent)
    (old,) = items_of(settings)
    catalog = pystac.Catalog.from_file(str(Path(settings.sink) / "catalog.json"))
    product = next(catalog.get_child("geoeye-1-sharpened").get_items())
    link = next(link for link in product.links if link.extra_fields.get("mlm:name") == "open-compact")
    assert link.rel == "derived_from"
    assert not any("/mlm/" in uri for uri in product.stac_extensions), "only an item that is a model may declare it"
    model = pystac.Item.from_file(link.absolute_href)
    network = load_checkpoint().network
    assert model.properties["mlm:total_parameters"] == sum(tensor.numel() for tensor in network.state_dict().values())
    assert model.assets["weights"].extra_fields["file:checksum"].startswith("1220")
    validate_item(json.loads(Path(link.absolute_href).read_text()))
    validate_document(json.loads((Path(settings.sink) / "models" / "collection.json").read_text()))

    sink, state = ("--sink", settings.sink), ("--state-dir", settings.state_dir)
    (made,) = json.loads(command("models", "products", "open-compact", *sink, "--json"))
    assert made["item_id"] == old
    assert "1 product\n" in command("models", "list", *sink)
    other = source / "mine.safetensors"
    save_checkpoint(other, random_checkpoint(1).network, {})
    planned = json.loads(
        command("models", "remake", "open-compact", "--with", str(other), "--plan", "--json", *sink, *state)
    )
    assert [product["item_id"] for product in planned["products"]] == [old]
    assert list(items_of(settings)) == [old]
    unfit = source / "three.safetensors"
    save_checkpoint(unfit, random_network(bands=3, attention="none"), {})
    misfit = runs.plan_remake("open-compact", settings.model_copy(update={"weights": str(unfit)}))
    assert not misfit.products, "each would wait for other weights, confirmed no more"
    assert "take 3 bands at once, the scene has 4" in misfit.left[0][1]
    remade = settings.model_copy(update={"weights": str(other)})
    said: list[str] = []
    plan = runs.plan_remake("open-compact", remade)
    assert plan.mpx == pytest.approx(256 * 256 / 1e6)
    assert plan.seconds > 0
    for changes, why in (
        ({"weights": settings.weights}, "made with these weights already"),
        ({"state_dir": str(source / "elsewhere")}, "not in this ledger; give --state-dir"),
    ):
        misfit = runs.plan_remake("open-compact", remade.model_copy(update=changes))
        assert not misfit.products
        assert why in misfit.left[0][1]
    away = other.rename(source / "away")
    with pytest.raises(runs.RunStoppedError, match="not found"):  # nothing else could be made either
        runs.remake(plan, remade, said.append)
    assert said[-1].startswith("report page: ")
    assert list(items_of(settings)) == [old]
    away.rename(other)
    (outcome,) = runs.remake(plan, remade, said.append)
    assert outcome.verdict == "published"
    assert said[-1].startswith("report page: ")
    found = items_of(settings)
    assert found[old]["properties"]["deprecated"]
    assert len(found) == 2
    assert json.loads(command("models", "products", "open-compact", *sink, "--json")) == []
    (made,) = json.loads(command("models", "products", "mine", *sink, "--json"))
    assert made["source"] == "geoeye-1/scene"
    assert "mine" in command("models", "list", *sink)
    events = list(ChangeFeed(StaticSink(settings.sink).store).events())
    assert [(event.type, event.item_id == old) for event in events] == [
        ("new", True), ("new", False), ("superseded", True),
    ]  # fmt: skip


def test_what_is_made_again_by_command_follows_the_rules_of_ones_own_contract(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PANCRAFTER_WORKERS", "0")
    settings = settings_with(source, max_consistency=0.001, max_of_detail=0, on_miss="hold")
    runs.run(settings.model_copy(update={"contracts_dir": None}), silent)
    (old,) = items_of(settings)
    other = source / "mine.safetensors"
    save_checkpoint(other, load_checkpoint().network, {})
    words = ["models", "remake", "open-compact", "--with", str(other), "--contracts-dir", str(settings.contracts_dir)]
    words += ["--sink", settings.sink, "--state-dir", settings.state_dir]
    said = command(*words)
    assert "1 held" in said
    assert "held: see `pancrafter held list`" in said
    assert list(items_of(settings)) == [old]
    assert "left alone: geoeye-1/scene: a newer result waits for a person" in command(*words, "--plan")
    state = ("--state-dir", settings.state_dir)
    command("held", "reject", "scene", "--reason", "blurry", *state)
    said = command(*words, "--plan")
    assert "refused (rejected: blurry); `pancrafter ledger redrive geoeye-1/scene` first" in said
    assert "0 products of open-compact" in said
    assert "left alone: 1 product of open-compact; --plan says why" in CliRunner().invoke(app, words).output
    command("ledger", "redrive", "geoeye-1/scene", *state)
    assert "1 product of open-compact, " in command(*words, "--plan")


def test_lost_announcement_is_repaired(source: Path) -> None:
    """Killed between the item and its announcement: publishing again changes nothing and announces."""
    settings = settings_with(source)
    runs.run(settings, silent)
    feed = ChangeFeed(StaticSink(settings.sink).store)
    (event,) = feed.events()
    for file in Path(settings.sink).glob("changes/*/*"):
        file.unlink()
    published = StaticSink(settings.sink).read_back(event.collection, event.item_id)
    for _ in range(2):
        steps.announce(StaticSink(settings.sink), published)
        (again,) = feed.events()
        assert again.id == event.id
    for file in Path(settings.sink).glob("changes/*/*"):
        file.unlink()
    command("changes", settings.sink, "--repair")
    (again,) = feed.events()
    assert again.id == event.id
