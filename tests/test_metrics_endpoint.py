"""What Prometheus is told follows from the ledger and the feed, and the alert rules only name what it is told."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml
from prometheus_client.parser import text_string_to_metric_families
from small_archive import add_scene, settings_in
from typer.testing import CliRunner

from pancrafter import discovery, runs
from pancrafter.cli import app
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.metrics_endpoint import SinkMetrics, text
from pancrafter.settings import Settings
from pancrafter.states import SceneKey, State, Work
from pancrafter.types import AssetRef, Scene

ALERTS = Path(__file__).resolve().parents[1] / "infra" / "prometheus" / "alerts.yml"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One published scene, one that nobody could read, one in work."""
    root = tmp_path_factory.mktemp("metrics")
    add_scene(root / "source", "good", side_px=128)
    broken = add_scene(root / "source", "broken", side_px=128, seed=2)
    broken.ms.write_bytes(broken.ms.read_bytes()[:2000])
    settings = settings_in(root)
    runs.run(settings, lambda _: None)
    add_scene(root / "source", "claimed", side_px=128, seed=3)
    with open_ledger(settings) as ledger:
        discovery.discover(settings, ledger)
    with Ledger(settings.ledger, clock=lambda: datetime.now(UTC) - timedelta(hours=2)) as ledger:
        key = SceneKey(sink=settings.sink, collection="geoeye-1", item_id="claimed")
        assert ledger.claim(key, owner="somebody", lease_s=900, recipe=ledger.show(key).recipe) is not None
    return settings


def values(settings: Settings) -> dict[str, float]:
    """``name{label values}`` -> value."""
    return {
        sample.name
        + (
            "{" + ",".join(value for _, value in sorted(sample.labels.items())) + "}" if sample.labels else ""
        ): sample.value
        for family in text_string_to_metric_families(text(settings))
        for sample in family.samples
    }


def test_numbers_are_those_of_the_ledger(settings: Settings) -> None:
    found = values(settings)
    assert found["pancrafter_up{ledger}"] == found["pancrafter_up{catalog}"] == 1
    with open_ledger(settings) as ledger:
        for state, count in ledger.counts(settings.sink).items():
            assert found[f"pancrafter_scenes{{{state}}}"] == count
        (row,) = ledger.rows(sink=settings.sink, states=[State.CONFIRMED])
    assert found["pancrafter_confirmed_scenes{cpu,geoeye-1}"] == 1
    for name in ("pixels", "bytes_read", "seconds", "sharpen_seconds"):
        assert found[f"pancrafter_confirmed_{name}{{cpu,geoeye-1}}"] == pytest.approx(row.measures[name])
    assert found["pancrafter_changes_last_day{new}"] == 1
    assert 7000 < found["pancrafter_oldest_claim_seconds"] < 9000
    assert found["pancrafter_oldest_eligible_seconds"] == 0
    assert sum(value for name, value in found.items() if name.startswith("pancrafter_failures{")) == 1


def counters(metrics: SinkMetrics) -> dict[str, float]:
    samples = [sample for metric in metrics.collect() if metric.type == "counter" for sample in metric.samples]
    assert all(not sample.labels for sample in samples)
    return {sample.name: sample.value for sample in samples}


def test_counters_never_go_down(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"state_dir": str(tmp_path)})
    metrics = SinkMetrics(settings)
    told = []
    with Ledger(settings.ledger, clock=lambda: datetime.now(UTC) - timedelta(hours=2)) as ledger:
        for fingerprint in ("f1", "f2"):  # made, taken back, made again from a newer source
            key = found(ledger, settings.sink, fingerprint)
            lease = ledger.claim(key, "somebody", 900, recipe="r")
            assert lease is not None
            for state in ("staged", "sharpened", "assessed", "published", "confirmed"):
                ledger.advance(lease, state)
            told.append(counters(metrics))
            ledger.mark_refused(key, "withdrawn", "clouds", withdrawn=True)
            told.append(counters(metrics))
    assert told == [{"pancrafter_confirmations_total": count} for count in (1, 1, 2, 2)]
    assert counters(SinkMetrics(settings)) == told[-1], "one that starts later counts from the beginning"


def test_totals_are_summed_again_only_when_a_scene_has_moved(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"state_dir": str(tmp_path)})
    metrics = SinkMetrics(settings)

    def pixels() -> list[float]:
        (family,) = (metric for metric in metrics.collect() if metric.name == "pancrafter_confirmed_pixels")
        return [sample.value for sample in family.samples]

    with open_ledger(settings) as ledger:
        key = found(ledger, settings.sink, "f1")
        assert pixels() == []
        ledger.take_over([key])
        assert pixels() == [0]
        engine = sa.create_engine(settings.ledger)
        with engine.begin() as connection:  # behind the ledger's back: who sums again sees it
            connection.execute(sa.text("UPDATE scene SET measures = :measures"), {"measures": '{"pixels": 7}'})
        engine.dispose()
        assert pixels() == [0]
        ledger.mark_refused(key, "withdrawn", "clouds", withdrawn=True)
        assert pixels() == []


def found(ledger: Ledger, sink: str, fingerprint: str) -> SceneKey:
    scene = Scene(
        collection="geoeye-1",
        item_id="a",
        sensor="geoeye-1",
        acquired="2026-01-01T10:00:00Z",
        pan=AssetRef(key="pan", href="/a/pan.tif"),
        ms=(AssetRef(key="ms", href="/a/ms.tif"),),
        bands=("red",),
        fingerprint=fingerprint,
        source_href="/a.json",
        geometry={"type": "Point", "coordinates": [1.0, 2.0]},
    )
    ledger.record_found(sink, [Work(scene=scene, recipe="r", output_item_id=f"a-{fingerprint}")])
    return SceneKey(sink=sink, collection="geoeye-1", item_id="a")


def test_unreachable_ledger_is_a_number_and_no_crash(settings: Settings, tmp_path: Path) -> None:
    down = settings.model_copy(update={"ledger_url": "postgresql+psycopg://nobody@127.0.0.1:9/none"})
    found = values(down)
    assert (found["pancrafter_up{ledger}"], found["pancrafter_up{catalog}"]) == (0, 1)


def test_no_ledger_yet_is_a_number_too_and_none_is_made(settings: Settings, tmp_path: Path) -> None:
    found = values(settings.model_copy(update={"state_dir": str(tmp_path / "state")}))
    assert (found["pancrafter_up{ledger}"], found["pancrafter_up{catalog}"]) == (0, 1)
    assert not (tmp_path / "state").exists()


def test_command_prints_them(settings: Settings) -> None:
    done = CliRunner().invoke(app, ["metrics", "--sink", settings.sink, "--state-dir", settings.state_dir])
    assert done.exit_code == 0
    assert 'pancrafter_scenes{state="confirmed"} 1.0' in done.output


def test_alerts_name_metrics_that_exist(settings: Settings) -> None:
    told = {name.split("{")[0] for name in values(settings)}
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        assert set(re.findall(r"pancrafter_\w+", rule["expr"])) <= told, rule["alert"]
        assert {"summary", "action"} <= set(rule["annotations"])
