"""Planted secrets: after a run under Prefect, ledger, items, Zarr, logs, artifacts and its database hold none."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.utilities.schema_tools import validate
from small_archive import add_scene, classical_contracts
from test_access import _serving

from flows.parameters import SecretParameterError, with_environment
from pancrafter.options import OptionError
from pancrafter.settings import Settings, WorkSettings, settings_from_environment

PROJECT = Path(__file__).resolve().parents[2]
TOKEN, OLD, KEY = "planted-token-7f3a", "planted-signature-91bc", "planted-aws-secret-55d0"


def _point_to(catalog: Path, item_id: str, url: str) -> None:
    """Hrefs of an item as a careless catalog has them: absolute, with a signature that ran out."""
    (path,) = (path for path in catalog.rglob("*.json") if path.stem == item_id)
    item = json.loads(path.read_text())
    for asset in item["assets"].values():
        file = (path.parent / asset["href"]).resolve().relative_to(catalog)
        asset["href"] = f"{url}/{file}?X-Amz-Signature={OLD}"
    path.write_text(json.dumps(item))


@pytest.mark.slow
def test_no_planted_secret_is_found_after_a_run(tmp_path: Path) -> None:
    catalog = tmp_path / "source"
    add_scene(catalog, "good", side_px=128)
    add_scene(catalog, "damaged", side_px=128, day=2).ms.write_bytes(b"not a tiff")
    classical_contracts(tmp_path / "contracts")
    headers = tmp_path / "headers.json"
    headers.write_text(json.dumps({"X-Key": TOKEN}))
    with _serving(catalog) as (url, server):
        server.token = TOKEN
        by_name = url.replace("127.0.0.1", "localhost")
        _point_to(catalog, "good", url)
        _point_to(catalog, "damaged", by_name)
        profiles = [
            {"match": ["http://127.0.0.1"], "kind": "signed", "sign_url": f"{url}/sign"},
            {"match": ["http://localhost"], "kind": "headers", "headers_file": str(headers)},
        ]
        environment = os.environ | {
            "PANCRAFTER_ACCESS": json.dumps({"allow_private": True, "profiles": profiles}),
            "PANCRAFTER_CONTRACTS_DIR": str(tmp_path / "contracts"),
            "PANCRAFTER_WORKERS": "0",
            "PANCRAFTER_KEEP_STAGED": "true",
            "AWS_SECRET_ACCESS_KEY": KEY,
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
        }
        for inherited in ("PREFECT_HOME", "PREFECT_API_URL"):
            environment.pop(inherited, None)
        out = tmp_path / "out"
        places = ["--source", catalog, "--sink", out / "sink", "--state-dir", out / "state"]
        command = [sys.executable, "-m", "flows", *map(str, places)]
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=550, check=False
        )
    (out / "output.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not a tiff" not in done.stdout
    assert list(out.rglob("sharpened*.tif")), done.stdout + done.stderr
    assert server.signed, "nothing was signed: the secrets were not in use"
    looked_at = [path for path in out.rglob("*") if path.is_file()]
    assert {"prefect.db", "ledger.db", "zarr.json", "output.log"} <= {path.name for path in looked_at}
    assert b"geoeye-1/damaged" in b"".join(
        path.read_bytes() for path in looked_at if path.name.startswith("prefect.db")
    )
    found = [
        f"{path.relative_to(out)}: {secret}"
        for path in looked_at
        for secret in (TOKEN, OLD, KEY)
        if secret.encode() in path.read_bytes()
    ]
    assert not found


def test_passwords_are_no_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql+psycopg://user:planted@host/db"
    options = ("sslmode=require&password=planted", "sslpassword=planted")
    written = (f"postgresql+psycopg://user:plan{sign}ted@host/db" for sign in "/?#")  # SQLAlchemy needs no escapes
    senseless = (
        "postgresql-psycopg://user:planted@host/db",
        address.replace("host", "host:port"),
        address.removeprefix("postgresql+psycopg:"),
    )
    with_options = (f"postgresql+psycopg://user@host/db?{option}" for option in options)
    for given in (address, *with_options, *written, *senseless):
        with pytest.raises(SecretParameterError, match="leave it out, and set PANCRAFTER_LEDGER_URL"):
            with_environment(Settings(ledger_url=given))
    monkeypatch.setenv("PANCRAFTER_LEDGER_URL", address)
    assert with_environment(Settings()).ledger_url == address
    monkeypatch.setenv("PANCRAFTER_CATALOG_URL", "https://user:planted@host/stac")
    with pytest.raises(OptionError, match="PANCRAFTER_CATALOG_URL: found a secret") as caught:
        with_environment(Settings())
    assert "planted" not in str(caught.value)
    for place in ("source", "sink", "catalog_url"):
        with pytest.raises(ValueError, match=r"holds a password; put it into ~/\.netrc"):
            Settings.model_validate({place: "https://user:planted@host/stac"})


def test_empty_places_of_a_deployment_are_those_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect puts nothing where a variable was missing when the deployment was made."""
    places = ("source", "sink", "state_dir", "catalog_url")
    for place in places:
        monkeypatch.setenv(f"PANCRAFTER_{place.upper()}", f"/data/{place}")
    for parameters in (Settings, WorkSettings):
        settings = with_environment(parameters.model_validate(dict.fromkeys(places, "")))
        assert [getattr(settings, place) for place in places] == [f"/data/{place}" for place in places]
    monkeypatch.setenv("PANCRAFTER_SINK", "")
    assert with_environment(Settings.model_validate({"sink": ""})).sink == str(Path("output").absolute())


@pytest.mark.parametrize(
    ("module", "name", "required"),
    [
        ("area", "nightly", {}),
        ("area", "backfill", {"selection": {}}),
        ("scene", "sharpen_scene", {"key": "geoeye-1/scene"}),
        ("upkeep", "census", {}),
        ("upkeep", "sweep", {}),
        ("upkeep", "redrive", {}),
    ],
)
def test_what_nobody_changes_in_prefects_form_is_the_workers(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, required: dict[str, object]
) -> None:
    """The form sends the default of every field (and of a switch without one, that it is off)."""
    for variable, value in {
        "DEVICE": "cuda",
        "WEIGHTS": "/ours.safetensors",
        "WORKERS": "8",
        "KEEP_STAGED": "true",
        "ACCESS": '{"roots": ["/data"]}',
        "COLLECTIONS": '["a"]',
    }.items():
        monkeypatch.setenv(f"PANCRAFTER_{variable}", value)
    flow = getattr(importlib.import_module(f"flows.{module}"), name)
    schema = flow.parameters.model_dump()
    fields = schema["definitions"][schema["properties"]["settings"]["$ref"].rpartition("/")[2]]["properties"]
    form = {field: shown["default"] for field, shown in fields.items()}
    untouched, changed = (required | {"settings": settings} for settings in (form, form | {"device": "cpu"}))
    validate(untouched, schema, raise_on_error=True)
    assert with_environment(flow.validate_parameters(untouched)["settings"]) == settings_from_environment()
    given = with_environment(flow.validate_parameters(changed)["settings"])
    assert given == settings_from_environment(device="cpu"), "who names the default gets it"


def test_an_archive_is_no_place_for_its_products(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="which is the source"):
        with_environment(Settings(source=str(tmp_path), sink=str(tmp_path)))
