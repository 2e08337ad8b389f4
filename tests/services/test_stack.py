"""Two simulated scenes through real servers: S3, pgstac behind a STAC API, PostgreSQL, Dask, Prefect with a worker."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from real_stack import is_of

from pancrafter import runs, steps
from pancrafter.errors import CatalogUnavailableError, InvalidSceneError, SinkError
from pancrafter.ledger import open_ledger
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.stac_api import StacApi
from pancrafter.states import State

pytestmark = pytest.mark.services
PROJECT = Path(__file__).resolve().parents[2]
COLLECTION = "geoeye-1-sharpened"


def found(settings: Settings, **query: Any) -> list[str]:
    from pystac_client import Client

    assert settings.catalog_url is not None
    search = Client.open(settings.catalog_url).search(collections=[COLLECTION], **query)
    return sorted(item["id"].split("_psh")[0] for item in search.items_as_dicts())


def test_scenes_are_confirmed_and_found_by_search(settings: Settings, outcomes: list[steps.Outcome]) -> None:
    assert {outcome.key: outcome.failed for outcome in outcomes} == {"geoeye-1/day-1": False, "geoeye-1/day-2": False}
    with open_ledger(settings) as ledger:
        assert ledger.url.startswith("postgresql+psycopg://")
        assert ledger.counts(settings.sink)[State.CONFIRMED] == 2
    assert found(settings) == ["day-1", "day-2"]
    assert found(settings, limit=1) == ["day-1", "day-2"], "paging"
    assert found(settings, datetime="2025-05-02/2025-05-03") == ["day-2"]
    assert found(settings, bbox=[8.9, 44.2, 9.1, 44.3]) == ["day-1", "day-2"]
    assert found(settings, bbox=[10, 44.2, 10.1, 44.3]) == []
    hqnr = sorted(outcome.quality.hqnr for outcome in outcomes if outcome.quality is not None)
    between = {"op": ">", "args": [{"property": "pancrafter:hqnr"}, sum(hqnr) / 2]}
    best = max(outcomes, key=lambda outcome: outcome.quality.hqnr if outcome.quality else 0)
    assert found(settings, filter=between, filter_lang="cql2-json") == [best.key.split("/")[1]]


def test_api_and_bucket_hold_the_same_files(settings: Settings, outcomes: list[steps.Outcome]) -> None:
    sink = StaticSink(settings.sink)
    for item in httpx.get(f"{settings.catalog_url}/collections/{COLLECTION}/items").json()["features"]:
        published = sink.read_back(COLLECTION, item["id"])  # compares sizes and checksums
        assert {key: asset["href"] for key, asset in item["assets"].items()} == published.assets
        assert all("file://" in link["href"] or "http" in link["href"] for link in item["links"])


def test_sending_again_changes_nothing(settings: Settings, outcomes: list[steps.Outcome]) -> None:
    assert settings.catalog_url is not None
    address = f"{settings.catalog_url}/collections/{COLLECTION}/items"
    before = httpx.get(address).json()["features"]
    assert StacApi(settings.catalog_url).send_all(StaticSink(settings.sink)) == 2
    assert httpx.get(address).json()["features"] == before
    assert runs.run(settings, lambda _: None) == []


def test_refusals_say_what_the_server_said(settings: Settings, outcomes: list[steps.Outcome]) -> None:
    assert settings.catalog_url is not None
    api = StacApi(settings.catalog_url)
    with pytest.raises(InvalidSceneError, match=r"refuses it \(4\d\d\).*geometry"):
        api._ask("POST", f"/collections/{COLLECTION}/items", {"type": "Feature", "id": "no-geometry"})
    with pytest.raises(SinkError, match="expected a STAC API with Transactions"):
        StacApi(settings.source).send_all(StaticSink(settings.sink))  # `pancrafter serve` only reads
    with pytest.raises(CatalogUnavailableError, match="is the STAC API up"):
        StacApi("http://127.0.0.1:9").send_all(StaticSink(settings.sink))


def test_deployment_runs_on_the_worker(urls: dict[str, str], outcomes: list[steps.Outcome]) -> None:
    """Everything is published, so the nightly finds nothing to do; it must find that out in the stack's own ledger."""
    command = [sys.executable, "-m", "prefect", "deployment", "run", "nightly/nightly", "--watch"]
    command += ["--param", "lookback_days=null"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (Path(urls["PANCRAFTER_STATE_DIR"]).parent / "prefect-worker.log").read_text()
    assert "0 new, 0 changed, 2 known, 0 refused, 0 to do" in log


def test_one_step_at_a_time_gets_the_device(urls: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "gcl", "inspect", "pancrafter-gpu"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"limit\W+1\b", done.stdout), done.stdout


def test_stack_ends_with_its_parent(urls: dict[str, str], tmp_path: Path) -> None:
    """``kill -9`` on the main process: the janitor ends a family that it knows, and one that hid, and cleans up."""
    code = (
        "import sys, time; from pathlib import Path; from infra.stack import Family; "
        "family = Family(Path(sys.argv[1])); "
        "family.start('known', ['sleep', '600']); "
        "family.start('hidden', ['sh', '-c', 'setsid sleep 600 & sleep 600']); print('up', flush=True); time.sleep(600)"
    )
    folder = tmp_path / "stack"
    folder.mkdir()
    main = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    assert main.stdout.readline() == "up\n"
    main.kill()
    main.wait(60)
    deadline = time.monotonic() + 120
    while any(is_of(process, folder) for process in psutil.process_iter()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()
    assert not [process for process in psutil.process_iter() if is_of(process, folder)]


def test_no_secret_in_logs_objects_and_staged_scenes(urls: dict[str, str], outcomes: list[steps.Outcome]) -> None:
    """After a run with secrets of S3 and PostgreSQL in every process: neither is in anything that was written."""
    folder = Path(urls["PANCRAFTER_STATE_DIR"]).parent
    password = re.search(r"://postgres:([0-9a-f]+)@", urls["PANCRAFTER_LEDGER_URL"])
    assert password is not None
    secrets = [password[1].encode(), urls["AWS_SECRET_ACCESS_KEY"].encode()]
    written = list(folder.glob("*.log"))
    written += [path for path in Path(urls["PANCRAFTER_STATE_DIR"]).rglob("*") if path.is_file()]
    assert len(written) > 8
    found = [path.name for path in written if any(secret in path.read_bytes() for secret in secrets)]
    store = StaticSink(urls["PANCRAFTER_SINK"]).store
    names = store.list_names("")
    assert len(names) > 10
    found += [name for name in names if any(secret in (store.read(name) or b"") for secret in secrets)]
    answer = httpx.get(f"{urls['PANCRAFTER_CATALOG_URL']}/collections/{COLLECTION}/items").content
    assert found == []
    assert not any(secret in answer for secret in secrets)
