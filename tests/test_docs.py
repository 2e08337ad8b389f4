"""What an analyst does with a published catalog: the code of the documentation, tiles, the snapshot and the report."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
from fastapi import FastAPI
from fastapi.testclient import TestClient
from nbclient import NotebookClient
from PIL import Image
from rio_cogeo import cog_validate
from rio_tiler.io import Reader
from small_archive import add_scene, settings_in
from stac_validator.stac_validator import StacValidate
from titiler.core.factory import TilerFactory

from pancrafter import report, runs, snapshot, withdrawal
from pancrafter.changes import ChangeFeed
from pancrafter.ledger import open_ledger
from pancrafter.publish import StaticSink
from pancrafter.report import write_report
from pancrafter.settings import Settings
from pancrafter.snapshot import SnapshotError, write_snapshot
from pancrafter.states import SceneKey
from pancrafter.validation import validate_document, validate_item

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalog in ``output``: one published scene, one held (its PAN is another scene's)."""
    root = tmp_path_factory.mktemp("home")
    good = add_scene(root / "source", "good", side_px=256, day=2)
    strange = add_scene(root / "source", "strange", side_px=256, seed=5, day=3)
    shutil.copy(good.pan, strange.pan)
    outcomes = runs.run(settings(root), lambda _: None)
    assert sorted(o.verdict for o in outcomes) == ["held", "published"]
    write_snapshot(StaticSink(settings(root).sink))
    return root


def settings(root: Path) -> Settings:
    return settings_in(root, sink=str(root / "output"))


def item_of(root: Path) -> pystac.Item:
    return next(pystac.Catalog.from_file(str(root / "output" / "catalog.json")).get_items(recursive=True))


def test_a_snapshot_in_batches_is_one_of_all_items(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rustac

    (published,) = StaticSink(settings(home).sink).items()
    own: list[dict[str, Any]] = [{}, {"a": 1}, {"a": 2.5}, {"b": {"c": ["x"]}}, {"b": {"d": []}, "a": None}, {}, {}, {}]
    items = [
        published | {"id": f"item-{n}", "properties": published["properties"] | change} for n, change in enumerate(own)
    ]
    items[6]["assets"] = {"other": {"href": "./x.tif", "bands": [{"name": "b1", "gsd": 2}]}}
    items[7]["geometry"] = {"type": "MultiPolygon", "coordinates": [published["geometry"]["coordinates"]]}

    class Sink:
        catalog_href = "none"

        def items(self) -> Iterator[dict[str, Any]]:
            yield from items

    monkeypatch.setattr(snapshot, "BATCH", 2)
    target = tmp_path / "batches.parquet"
    assert write_snapshot(Sink(), target) == (str(target), len(items))  # type: ignore[arg-type]
    rustac.write_sync(str(tmp_path / "all.parquet"), [snapshot._from_root(item) for item in items])
    found, expected = (
        {feature["id"]: feature for feature in rustac.read_sync(str(path), set_self_link=False)["features"]}
        for path in (target, tmp_path / "all.parquet")
    )
    assert found == expected
    assert found["item-2"]["properties"]["a"] == 2.5


def test_a_snapshot_that_cannot_be_written_is_said(home: Path, tmp_path: Path) -> None:
    sink, file = StaticSink(settings(home).sink), tmp_path / "file"
    for target in (tmp_path, Path("/dev/null")):  # as root, a device would be replaced
        with pytest.raises(SnapshotError, match=f"^{target}: is no regular file"):
            write_snapshot(sink, target)
    file.touch()
    with pytest.raises(SnapshotError, match=f"^{file}/items.parquet: cannot be written .*TMPDIR"):
        write_snapshot(sink, file / "items.parquet")


def test_code_of_the_analysts_page_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "analysts.md").read_text(), re.DOTALL)
    assert len(blocks) >= 10
    names: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for number, block in enumerate(blocks):
            exec(compile(block, f"analysts.md, block {number}", "exec"), names)
    assert any("NIR is not covered" in str(w.message) for w in seen)
    printed = capsys.readouterr().out
    assert "good_psh-" in printed
    assert "100.0% usable" in printed
    assert float(names["ndvi"].notnull().mean()) > 0.99


HAS_QGIS = subprocess.run(["/usr/bin/python3", "-c", "import qgis.core"], capture_output=True, check=False)
QGIS_START = """
from qgis.core import QgsApplication
application = QgsApplication([], False)
application.initQgis()
"""


@pytest.mark.skipif(HAS_QGIS.returncode != 0, reason="QGIS is not installed (python3-qgis)")
def test_qgis_opens_a_product_as_the_analysts_page_says(home: Path) -> None:
    (block,) = re.findall(r"```python qgis\n(.*?)```", (DOCS / "analysts.md").read_text(), re.DOTALL)
    shown = subprocess.run(
        ["/usr/bin/python3", "-c", QGIS_START + block],
        cwd=home, capture_output=True, text=True, check=False, timeout=120,
        env={"QT_QPA_PLATFORM": "offscreen", "PATH": "/usr/bin:/bin", "HOME": str(home)},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "EPSG:32632 0.5 ['Band 1: blue', 'Band 2: green', 'Band 3: red', 'Band 4: nir']" in shown.stdout


@pytest.mark.skipif(shutil.which("gdalbuildvrt") is None, reason="gdal-bin is not installed: `make viewers`")
def test_gdal_commands_of_the_analysts_page_run(home: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", (DOCS / "analysts.md").read_text(), re.DOTALL)
    ran = subprocess.run(["sh", "-ec", block], cwd=home, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "LAYOUT=COG" in ran.stdout
    assert "Description = nir" in ran.stdout
    assert ran.stdout.count("STATISTICS_MEAN") == 4
    assert "Size is 256, 256" in ran.stdout


def test_notebook_runs_and_warns(home: Path) -> None:
    notebook = nbformat.read(DOCS / "analyst.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(home)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Warning: nir is not covered by PAN: do not read NDVI pixel by pixel" in printed
    assert "Warning: NDVI of digital numbers" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    agreement = [float(value) for value in re.findall(r"correlation with the measured band ([\d.]+)", printed)]
    assert len(agreement) == 4
    assert min(agreement) > 0.9
    assert float(re.search(r"averaged NDVI minus .* median ([\d.]+)", printed)[1]) < 0.05


def test_item_says_what_the_files_say(home: Path) -> None:
    item = item_of(home)
    document = json.loads(Path(item.get_self_href()).read_text())
    validate_item(document)
    validate_document(json.loads((home / "output" / item.collection_id / "collection.json").read_text()))
    for key in ("sharpened", "mask", "quality"):
        asset = document["assets"][key]
        with rasterio.open(item.assets[key].get_absolute_href()) as source:
            assert source.dtypes[0] == asset["data_type"]
            assert source.nodata == asset.get("nodata")
            assert source.res[0] == pytest.approx(asset["gsd"])
            where = asset if "proj:shape" in asset else document["properties"]
            assert list(source.shape) == where["proj:shape"]
            assert list(source.transform)[:6] == where["proj:transform"]
            assert source.crs.to_string() == document["properties"]["proj:code"]
            if "bands" in asset:
                assert list(source.descriptions) == [band["name"] for band in asset["bands"]]
                assert list(source.scales) == [band.get("raster:scale", 1.0) for band in asset["bands"]]
                for index, band in enumerate(asset["bands"], 1):
                    values = source.read(index, masked=True)
                    assert band["statistics"]["minimum"] == values.min()
                    assert band["statistics"]["mean"] == pytest.approx(float(values.mean(dtype="float64")))
        assert cog_validate(item.assets[key].get_absolute_href(), strict=True, quiet=True)[0]
    assert document["assets"]["quality"]["gsd"] == 16.0
    assert 0 <= document["properties"]["pancrafter:inconsistent_share"] < 0.05
    summary = json.loads((home / "output" / item.collection_id / "collection.json").read_text())
    assert set(summary["item_assets"]) <= set(document["assets"])
    assert summary["summaries"]["pancrafter:sensor"] == ["geoeye-1"]


def schema_map() -> dict[str, str]:
    """Every schema address that published documents name, and the file that holds it."""
    base = resources.files("pystac.validation.jsonschemas")
    found = {}
    for entry in (base / "stac-spec" / "v1.1.0").iterdir():
        kind = entry.name.removesuffix(".json")
        folder = kind if kind in {"item", "catalog", "collection"} else "item"
        found[f"https://schemas.stacspec.org/v1.1.0/{folder}-spec/json-schema/{entry.name}"] = str(entry)
    for entry in (base / "geojson").iterdir():
        found[f"https://geojson.org/schema/{entry.name}"] = str(entry)
    for entry in Path(str(resources.files("pancrafter") / "schemas")).glob("*.json"):
        if "x-extension" in (schema := json.loads(entry.read_text())):
            found[schema["x-extension"]] = str(entry)
    return found


def test_stac_validator_accepts_everything_published_and_nothing_broken(home: Path, tmp_path: Path) -> None:
    """stac-validator, without a network: it reads the schemas from files."""
    documents = [path for path in (home / "output").rglob("*.json") if "schemas" not in path.parts]
    assert len(documents) == 5  # catalog, two collections, a product, a model
    schemas = schema_map()
    for path in documents:
        check = StacValidate(str(path), schema_map=schemas)
        assert check.run(), check.message
    item = json.loads(Path(item_of(home).get_self_href()).read_text())
    declared = {schemas[uri] for uri in item["stac_extensions"]}
    check = StacValidate(item_of(home).get_self_href(), schema_map=schemas)
    check.run()
    assert declared < set(check.message[0]["schema"]), "an extension was not checked"
    for change in ({"gsd": "fine"}, {"proj:shape": [1.5, 2]}, {"datetime": "yesterday"}):
        broken = tmp_path / "broken.json"
        broken.write_text(json.dumps(item | {"properties": item["properties"] | change}))
        assert not StacValidate(str(broken), schema_map=schemas).run(), change


GDAL_CHECK = ("/usr/bin/python3", "-m", "osgeo_utils.samples.validate_cloud_optimized_geotiff", "--full-check=yes")
HAS_GDAL = subprocess.run(["/usr/bin/python3", "-c", "import osgeo_utils.samples"], capture_output=True, check=False)


@pytest.mark.skipif(HAS_GDAL.returncode != 0, reason="python3-gdal is not installed: `make viewers`")
def test_gdals_own_check_accepts_the_files(home: Path) -> None:
    for key in ("sharpened", "mask", "quality"):
        file = item_of(home).assets[key].get_absolute_href()
        check = subprocess.run([*GDAL_CHECK, file], capture_output=True, text=True, check=False, timeout=120)
        assert check.returncode == 0, check.stdout + check.stderr
        assert "is a valid cloud optimized GeoTIFF" in check.stdout
        assert "warning" not in check.stdout.lower()


def test_files_are_laid_out_as_gdal_lays_out_cogs(home: Path) -> None:
    for key in ("sharpened", "mask", "quality"):
        with rasterio.open(item_of(home).assets[key].get_absolute_href()) as source:
            assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_titiler_serves_a_product(home: Path, tmp_path: Path) -> None:
    """The tile server's own application, asked over HTTP: tile, preview and point are what the file holds."""
    href = item_of(home).assets["sharpened"].get_absolute_href()
    server = FastAPI()
    server.include_router(TilerFactory().router)
    with TestClient(server) as client, rasterio.open(href) as source:
        info = client.get("/info", params={"url": href}).json()
        assert [name for _, name in info["band_descriptions"]] == list(source.descriptions)
        assert info["nodata_value"] == source.nodata
        stretch = {"url": href, "bidx": [3, 2, 1], "rescale": "0,1200"}
        with Reader(href) as reader:
            west, south, east, north = reader.get_geographic_bounds("EPSG:4326")
            tile = reader.tms.tile((west + east) / 2, (south + north) / 2, 18)
        answer = client.get(f"/tiles/WebMercatorQuad/{tile.z}/{tile.x}/{tile.y}.png", params=stretch)
        assert answer.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(answer.content)) as picture:
            values = np.asarray(picture)
        assert values.shape == (256, 256, 4)
        assert values[values[..., 3] > 0][:, :3].std() > 10
        preview = client.get("/preview.png", params=stretch | {"max_size": 128})
        with Image.open(io.BytesIO(preview.content)) as picture:
            assert picture.size == (128, 128)
        lon, lat = (west + east) / 2, (south + north) / 2
        point = client.get(f"/point/{lon},{lat}", params={"url": href}).json()
        x, y = rasterio.warp.transform("EPSG:4326", source.crs, [lon], [lat])
        assert point["values"] == next(iter(source.sample([(x[0], y[0])]))).tolist()


def test_tiles_and_thumbnail(home: Path) -> None:
    item = item_of(home)
    with Reader(item.assets["sharpened"].get_absolute_href()) as reader:
        west, south, east, north = reader.get_geographic_bounds("EPSG:4326")
        tile = reader.tms.tile((west + east) / 2, (south + north) / 2, 18)
        picture = reader.tile(tile.x, tile.y, tile.z, indexes=(3, 2, 1))
    assert picture.data.shape == (3, 256, 256)
    assert (picture.mask > 0).mean() > 0.3
    assert picture.data[:, picture.mask > 0].std() > 10
    with Image.open(item.assets["thumbnail"].get_absolute_href()) as shown:
        values = np.asarray(shown).transpose(2, 0, 1)
    assert values.shape[0] == 4
    assert (values[3] == 255).all()
    assert values[:3].std() > 30


def test_snapshot_leaves_no_thread_in_python(home: Path, tmp_path: Path) -> None:
    """One that is still there when the program ends crashes it: with status 134 or 139, after its last line."""
    program = f"""
import sys, threading
from pathlib import Path
from pancrafter.publish import StaticSink
from pancrafter.snapshot import write_snapshot
for _ in range(20):
    write_snapshot(StaticSink({settings(home).sink!r}), Path({str(tmp_path / "items.parquet")!r}))
    assert sys._current_frames().keys() <= {{thread.ident for thread in threading.enumerate()}}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.hrefs += [values["href"]] if values.get("href") else []
        self.sources += re.findall(r'url\("?([^")]+)"?\)', values.get("style") or "")
        assert tag not in {"script", "link", "iframe"}, "nothing comes from elsewhere"


def test_badges_of_the_report_page_can_be_read() -> None:
    """White on every colour has the contrast of WCAG's level AA."""
    for colour in report._COLOURS.values():
        rgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (linear @ (0.2126, 0.7152, 0.0722) + 0.05) >= 4.5, colour


def test_report_page_names_everything_and_its_pictures_exist(home: Path) -> None:
    text = (home / "output" / "report.html").read_text()
    page = _Page()
    page.feed(text)
    item = item_of(home)
    assert f"{item.collection_id}/{item.id}/{item.id}.json" in page.hrefs
    assert len(page.sources) == 2
    for href in [*page.sources, *(h for h in page.hrefs if not h.startswith("#"))]:
        assert (home / "output" / href).is_file(), href
    assert "held for a person" in text
    assert "pancrafter held release|reject geoeye-1/strange" in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: `make viewers`")
def test_report_page_in_a_browser(home: Path, tmp_path: Path) -> None:
    """The browser shows map, table and both layers of the slider: their pixels differ left and right of the handle."""
    shot = tmp_path / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run(
        ["chromium", *flags, f"--screenshot={shot}", "--window-size=1000,1400", (home / "output/report.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=240,
    )
    with Image.open(shot) as picture:
        values = np.asarray(picture.convert("RGB")).transpose(2, 0, 1).astype(int)
    green = (np.abs(values - np.array([0x2B, 0x7D, 0x48])[:, None, None]).sum(axis=0) < 12).sum()
    assert green > 50, "no footprint in the colour of a pass"
    assert values.std() > 30


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: `make viewers`")
def test_tables_of_the_report_page_fit_on_a_phone(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    beyond = "Math.max(...[...document.querySelectorAll('table')].map(t => t.scrollWidth - t.clientWidth))"
    text = (home / "output" / "report.html").read_text()
    page.write_text(f"{text}<script>document.title = 'beyond ' + {beyond}</script>")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        ["chromium", *flags, "--window-size=500,900", "--dump-dom", page.as_uri()],
        check=True, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "<title>beyond 0</title>" in shown.stdout


def test_report_of_an_empty_catalog(tmp_path: Path) -> None:
    text = Path(write_report(StaticSink(str(tmp_path)))).read_text()
    assert "<b>0</b>published" in text


def test_withdrawn_item_is_gone_announced_and_not_made_again(home: Path, tmp_path: Path) -> None:
    for name in ("source", "output", "state"):
        shutil.copytree(home / name, tmp_path / name)
    moved = settings(tmp_path)
    item = item_of(tmp_path)
    with open_ledger(settings(home)) as old:
        row = old.find("good")[0]
    assert row.output_item_id == item.id
    # The ledger knows a sink by its name, so the copied ledger is asked about the old one.
    key = SceneKey(sink=settings(home).sink, collection="geoeye-1", item_id="good")
    with open_ledger(moved) as ledger:
        assert withdrawal.withdraw(key, "wrong area", moved, ledger) == (item.id,)
        assert ledger.show(key).state == "refused"
    sink = StaticSink(moved.sink)
    assert not sink.exists(item.collection_id, item.id)
    assert sink.orphans(item.collection_id) == ()
    last = list(ChangeFeed(sink.store).events())[-1]
    assert (last.type, last.item_id, last.reason) == ("withdrawn", item.id, "wrong area")


def test_api_reference_builds_without_a_warning(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, str(DOCS / "build_api.py"), str(tmp_path)], capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    assert "def</span>" in (tmp_path / "pancrafter.html").read_text()
    assert "write its shard, and mark it done last" in (tmp_path / "pancrafter" / "engine.html").read_text()
