"""Access rules: what hrefs of strangers may reach, and credentials that are added while reading and kept nowhere."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
import rasterio
from listening import Quiet, http_server
from pydantic import ValidationError
from rasterio.transform import from_origin
from small_archive import write_catalog
from test_cube import Pair, contract, whole

from pancrafter.access import Access, HostProfile, Reader, without_secrets
from pancrafter.catalog import discover
from pancrafter.cube import stage_scene
from pancrafter.errors import (
    AccessError,
    CatalogUnavailableError,
    InvalidSceneError,
    SinkError,
    SourceError,
    TransientReadError,
)
from pancrafter.opening import open_source
from pancrafter.sensors import load_contracts
from pancrafter.stac_api import StacApi
from pancrafter.store import SceneStore
from pancrafter.types import AssetRef, Refusal, Scene

PUBLIC = Access()


@pytest.mark.parametrize(
    "href",
    [
        "http://127.0.0.1/a.tif",
        "http://localhost/a.tif",
        "https://LOCALHOST./a.tif",
        "http://a.localhost/a.tif",
        "http://10.1.2.3/a.tif",
        "http://192.168.0.9:8080/a.tif",
        "http://172.16.5.5/a.tif",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/a.tif",
        "http://[fe80::1]/a.tif",
        "http://[::ffff:10.0.0.1]/a.tif",
        "http://2130706433/a.tif",
        "http://0x7f000001/a.tif",
        "http://[::ffff:100.64.0.1]/a.tif",
        "http://0/a.tif",
        "http:///a.tif",
        "http://%31%32%37.0.0.1/a.tif",
        "http://127.0.0.1\\@example.com/a.tif",
        "http://a@127.0.0.1@example.com/a.tif",
        "http://l\u1d3ccalhost/a.tif",
        "file:///etc/passwd",
        "file://server/share/a.tif",
        "/etc/passwd",
        "../../etc/passwd",
        "/vsicurl/http://10.0.0.1/a.tif",
        "/vsizip//tmp/a.zip/b.tif",
        "zip+https://example.com/a.zip!b.tif",
        "ftp://example.com/a.tif",
        "gs://bucket/a.tif",
        "vrt://a.tif",
        "<VRTDataset/>",
    ],
)
def test_what_a_remote_catalog_must_not_reach(href: str) -> None:
    assert PUBLIC.trusting("https://stac.example.com/v1").fault(href)


@pytest.mark.parametrize(
    "href",
    [
        "https://example.com/a.tif",
        "https://user:p%40ss@a_b.example.com:8443/a%20b.tif",
        "s3://bucket/a.tif",
        "https://8.8.8.8/a.tif",
        "https://[2606:4700::1111]/a.tif",
    ],
)
def test_what_it_may(href: str) -> None:
    assert PUBLIC.fault(href) is None


def test_the_host_of_the_source_is_trusted_and_no_other() -> None:
    rules = PUBLIC.trusting("http://10.0.0.5:8080/stac")
    assert rules.fault("http://10.0.0.5:9000/a.tif") is None
    assert "private address 10.0.0.6" in (rules.fault("http://10.0.0.6/a.tif") or "")
    assert rules.fault("file:///data/a.tif")
    assert Access(allow_private=True).fault("http://10.0.0.6/a.tif") is None


def test_local_files_of_local_catalogs_and_declared_roots(tmp_path: Path) -> None:
    assert PUBLIC.trusting("/data/catalog").fault("/elsewhere/a.tif") is None
    assert PUBLIC.trusting("http://127.0.0.1:8000").fault("file:///elsewhere/a.tif") is None
    for href in ("/vsicurl/a.tif", "file:///%76sicurl/a.tif", "<VRTDataset/>", "a\0.tif", "file://server/share/a.tif"):
        assert PUBLIC.trusting("/data/catalog").fault(href), "nor of a local catalog"
    rules = Access(roots=(str(tmp_path),)).trusting("/data/catalog")
    assert rules.fault(str(tmp_path / "a.tif")) is None
    assert "outside the allowed folders" in (rules.fault(f"{tmp_path}/../a.tif") or "")
    (tmp_path / "link").symlink_to("/etc")
    assert rules.fault(str(tmp_path / "link" / "passwd"))


def test_names_are_looked_up_when_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A public name with a private address gets past discovery, not past the reader, nor by way of another host."""
    import pancrafter.access as module

    look_up = module.socket.getaddrinfo

    def answer(host: str, *others: Any, **named: Any) -> list[Any]:
        evil = host == "evil.example.com"
        return [(2, 1, 6, "", ("10.0.0.7", 0))] if evil else look_up(host, *others, **named)

    monkeypatch.setattr(module.socket, "getaddrinfo", answer)
    assert PUBLIC.fault("https://evil.example.com/a.tif") is None
    with pytest.raises(InvalidSceneError, match=r"private address 10\.0\.0\.7"):
        Reader(PUBLIC).open("https://evil.example.com/a.tif")
    with _redirecting("http://evil.example.com") as (near, _):
        with pytest.raises(InvalidSceneError, match=r"redirects to evil\.example\.com: .*private address 10\.0\.0\.7"):
            Reader(PUBLIC.trusting(near)).open(f"{near}/a.tif")
        with pytest.raises(SourceError, match=r"private address 10\.0\.0\.7"):
            list(discover(f"{near}/catalog.json", contracts=load_contracts()))


# --- discovery --------------------------------------------------------------------------------------------------------


def _item(href: str, item_id: str = "a") -> dict[str, Any]:
    ring = [[0.0, 0.0], [0.1, 0.0], [0.1, 0.1], [0.0, 0.0]]
    bands = [{"name": name, "common_name": name} for name in ("blue", "green", "red", "nir")]
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": item_id, "links": [], "collection": "c",
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [0.0, 0.0, 0.1, 0.1],
        "properties": {"datetime": "2025-03-01T10:00:00Z", "platform": "worldview-2"},
        "assets": {
            "pan": {"href": href, "type": "image/tiff", "eo:bands": [{"name": "pan", "common_name": "pan"}]},
            "ms": {"href": "https://example.com/ms.tif", "eo:bands": bands},
        },
    }  # fmt: skip


def _verdicts(folder: Path, *items: dict[str, Any], **options: Any) -> list[Scene | Refusal]:
    return list(discover(write_catalog(folder, items), contracts=load_contracts(), **options))


def test_forbidden_assets_are_refused_in_discovery_and_the_others_go_on(tmp_path: Path) -> None:
    items = [_item("http://169.254.169.254/p.tif", "a"), _item("https://example.com/p.tif", "b")]
    found = {v.item_id: v for v in _verdicts(tmp_path, *items)}
    assert isinstance(found["b"], Scene)
    refused = found["a"]
    assert isinstance(refused, Refusal)
    assert refused.code == "forbidden_href"
    assert "asset pan: host 169.254.169.254" in refused.reason


def test_strangers_do_not_command_the_terminal(tmp_path: Path) -> None:
    told = "\x1b]0;told\x07"
    named, gone = _item("https://example.com/p.tif", told), _item(f"https://example.com/{told}.tif", "b")
    keyed = _item("https://example.com/p.tif", "c")
    keyed["assets"][told] = keyed["assets"].pop("pan")
    verdicts = _verdicts(tmp_path, named, gone, keyed, _item("https://example.com/p.tif", "\x9b]0;told\x07"))
    assert [getattr(verdict, "code", None) for verdict in verdicts] == ["malformed"] * 4
    assert "\x1b" not in "".join(map(str, verdicts)) + "".join(verdict.item_id for verdict in verdicts)
    assert {verdict.item_id for verdict in verdicts} == {r"\u001b]0;told\u0007", r"\u009b]0;told\u0007", "b", "c"}


@pytest.mark.parametrize(
    "item_id", ["../../../tmp/x", "a/../b", "..", "a\\b", "a\nb", "/abs", "x" * 201, "é" * 101, "a\x00b"]
)
def test_ids_that_lead_out_of_their_folder(tmp_path: Path, item_id: str) -> None:
    (verdict,) = _verdicts(tmp_path, _item("https://example.com/p.tif", item_id))
    assert isinstance(verdict, Refusal)
    assert (verdict.code, "cannot name a file" in verdict.reason) == ("malformed", True)


# --- credentials ------------------------------------------------------------------------------------------------------


class _Server(Quiet):
    """Serves files of a folder to who shows the valid token or header, and signs hrefs like a real service does."""

    folder: ClassVar[Path]
    token: ClassVar[str] = "one"
    signed: ClassVar[list[str]] = []
    stale: ClassVar[dict[str, int]] = {}
    """How many of the first signatures of an href do not hold."""
    expiry: ClassVar[str | None] = None
    """When signatures run out, if not in an hour."""
    refusal: ClassVar[int] = 0
    """The answer to every request for a file, while it is set."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if parts.path == "/sign":
            href = query["href"][0]
            self.signed.append(href)
            stale = self.stale.get(href, 0) >= self.signed.count(href)
            expiry = self.expiry or (datetime.now(UTC) + timedelta(seconds=3600)).isoformat()
            answer = {"href": f"{href}?token={'stale' if stale else self.token}", "msft:expiry": expiry}
            self._send(200, json.dumps(answer).encode(), body=body)
            return
        if self.refusal:
            self._send(self.refusal, b"not now", body=body)
            return
        shown = query.get("token", [""])[0] or self.headers.get("X-Key", "")
        path = self.folder / unquote(parts.path).lstrip("/")
        if shown != self.token:
            self._send(403, b"no", body=body)
        elif not path.is_file():
            self._send(404, b"none", body=body)
        else:
            self._send_part(path.read_bytes(), body=body)

    def _send_part(self, content: bytes, *, body: bool) -> None:
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            self._send(200, content, body=body)
            return
        start, _, stop = asked[6:].partition("-")
        last = min(int(stop or len(content)), len(content) - 1)
        part = content[int(start) : last + 1]
        self._send(206, part, body=body, extra={"Content-Range": f"bytes {start}-{last}/{len(content)}"})

    def _send(self, code: int, content: bytes, *, body: bool, extra: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, type[_Server]]]:
    handler = type("Handler", (_Server,), {"folder": folder, "signed": []})
    with http_server(handler) as url:
        yield url, handler


def _remote_scene(folder: Path, url: str) -> tuple[Scene, Pair]:
    rng = np.random.default_rng(5)
    pair = Pair(
        pan=rng.integers(1, 2000, (128, 128)).astype(np.uint16), ms=rng.integers(1, 2000, (3, 32, 32)).astype(np.uint16)
    )
    scene = pair.write(folder)
    ms = tuple(ref.model_copy(update={"href": f"{url}/ms.tif"}) for ref in scene.ms)
    return scene.model_copy(update={"pan": AssetRef(key="pan", href=f"{url}/pan.tif"), "ms": ms}), pair


def _access(url: str, **fields: Any) -> Access:
    profile = HostProfile.model_validate({"match": ("http://127.0.0.1",), **fields})
    return Access(profiles=(profile,)).trusting(url)


def test_hrefs_are_signed_while_reading_and_stored_unsigned(tmp_path: Path) -> None:
    with _serving(tmp_path) as (url, handler):
        scene, pair = _remote_scene(tmp_path, url)
        access = _access(url, kind="signed", sign_url=f"{url}/sign")
        staged = stage_scene(scene, contract(), str(tmp_path / "s.zarr"), block_px=64, access=access)
        assert np.array_equal(SceneStore.open(staged.store_uri).read_pan(whole((128, 128))), pair.pan)
        assert sorted(set(handler.signed)) == [f"{url}/ms.tif", f"{url}/pan.tif"]
        assert len(handler.signed) == 2, "a signature is used until it runs out"
    assert "token" not in staged.model_dump_json()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "s.zarr").rglob("zarr.json"))
    assert b"token" not in stored


@pytest.mark.parametrize(
    ("hours", "zone", "used_again"), [(1, 2, True), (1, -2, True), (-1, 2, False), (1, None, True), (-1, None, False)]
)
def test_a_signature_is_used_until_it_runs_out_in_whatever_zone(
    tmp_path: Path, hours: int, zone: int | None, *, used_again: bool
) -> None:
    moment = datetime.now(UTC) + timedelta(hours=hours)
    there = moment.replace(tzinfo=None) if zone is None else moment.astimezone(timezone(timedelta(hours=zone)))
    with _serving(tmp_path) as (url, handler):
        handler.expiry = there.isoformat()
        reader = Reader(_access(url, kind="signed", sign_url=f"{url}/sign"))
        for _ in range(2):
            reader.open(f"{url}/pan.tif")
        assert len(handler.signed) == (1 if used_again else 2)


@pytest.mark.parametrize(("hours", "known"), [(1, True), (48, False)])
def test_signatures_that_ran_out_long_ago_are_not_kept(tmp_path: Path, hours: int, *, known: bool) -> None:
    """A file that was opened with one an hour ago may still be read, and must be signed anew then."""
    with _serving(tmp_path) as (url, handler):
        reader = Reader(_access(url, kind="signed", sign_url=f"{url}/sign"))
        handler.expiry = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
        reader.open(f"{url}/pan.tif")
        reader.open(f"{url}/ms.tif")
        assert reader.forget(f"{url}/pan.tif") is known


def test_a_refused_signature_is_asked_for_once_more(tmp_path: Path) -> None:
    """Services hand out signatures that no longer hold: one more is asked for, and a second refusal is final."""
    with _serving(tmp_path) as (url, handler):
        scene, _ = _remote_scene(tmp_path, url)
        handler.stale = {f"{url}/pan.tif": 1, f"{url}/ms.tif": 1}
        access = _access(url, kind="signed", sign_url=f"{url}/sign")
        stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64, access=access)
        assert sorted(handler.signed) == sorted([f"{url}/pan.tif", f"{url}/ms.tif"] * 2)
    with _serving(tmp_path) as (url, handler):
        scene, _ = _remote_scene(tmp_path, url)
        handler.stale = {f"{url}/pan.tif": 2}
        access = _access(url, kind="signed", sign_url=f"{url}/sign")
        with pytest.raises(TransientReadError, match="asset pan: its header cannot be read"):
            stage_scene(scene, contract(), str(tmp_path / "b.zarr"), block_px=64, access=access)


@pytest.mark.parametrize(("kept", "said"), [(0.0, "not recognized"), (0.5, "band 1")])
def test_signatures_stay_out_of_what_gdal_says(tmp_path: Path, kept: float, said: str) -> None:
    """It names a file by its whole address, or by what follows the last slash."""
    with _serving(tmp_path) as (url, _):
        scene, _ = _remote_scene(tmp_path, url)
        whole_file = (tmp_path / "pan.tif").read_bytes()
        (tmp_path / "pan.tif").write_bytes(whole_file[: int(kept * len(whole_file))] or b"<html>log in</html>")
        access = _access(url, kind="signed", sign_url=f"{url}/sign")
        with pytest.raises((InvalidSceneError, TransientReadError), match=said) as failure:
            stage_scene(scene, contract(), str(tmp_path / "s.zarr"), block_px=64, access=access)
        assert r"pan.tif?..." in str(failure.value)
        assert "token" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'/vsicurl/https://h/p.tif?sv=1&sig=S' not recognized", "'/vsicurl/https://h/p.tif?...' not recognized"),
        ("p.tif?sig=S, band 1: failed", "p.tif?..., band 1: failed"),
        ("p.tif?a=1,2&sig=S: failed", "p.tif?...: failed"),
        ("(see https://h/x?S).", "(see https://h/x?...)."),
        ("s3://user:S@h/k", "s3://h/k"),
        ("it said \x1b[2J\x9b2J\u202egpj.a\n", "it said ?[2J?2J?gpj.a\n"),
        ("is it up? It is tried=again", "is it up? It is tried=again"),
    ],
)
def test_texts_without_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize("hostile", ["a://", "a://x@"])
def test_a_hostile_text_takes_no_longer_than_others(hostile: str) -> None:
    def seconds(part: str) -> float:
        text = part * (400_000 // len(part))
        begun = time.process_time()
        without_secrets(text)
        return time.process_time() - begun

    assert seconds(hostile) < 8 * seconds("<p>an error page ")


def test_headers_come_from_a_secret_file(tmp_path: Path) -> None:
    secret = tmp_path / "headers.json"
    secret.write_text(json.dumps({"X-Key": "one"}))
    with _serving(tmp_path) as (url, _):
        scene, _ = _remote_scene(tmp_path, url)
        access = _access(url, kind="headers", headers_file=str(secret))
        stage_scene(scene, contract(), str(tmp_path / "s.zarr"), block_px=64, access=access)
        with pytest.raises(TransientReadError, match="asset pan"):
            stage_scene(scene, contract(), str(tmp_path / "t.zarr"), block_px=64, access=Access(allow_private=True))


@pytest.mark.parametrize("kind", ["headers", "signed"])
def test_documents_of_a_closed_catalog_are_asked_for_like_its_files(tmp_path: Path, kind: str) -> None:
    catalog, secret = tmp_path / "catalog", tmp_path / "headers.json"
    catalog.mkdir()
    secret.write_text(json.dumps({"X-Key": "one"}))
    _verdicts(catalog, _item("https://example.com/p.tif"))
    with _serving(catalog) as (url, _):
        fields = {"headers_file": str(secret)} if kind == "headers" else {"sign_url": f"{url}/sign"}
        access, source = _access(url, kind=kind, **fields), f"{url}/catalog.json"
        found = list(discover(source, contracts=load_contracts(), access=access))
        assert [(type(verdict), verdict.item_id) for verdict in found] == [(Scene, "a")]
        assert "token" not in found[0].model_dump_json()
        with pytest.raises(SourceError, match="403"):
            list(discover(source, contracts=load_contracts(), access=PUBLIC.trusting(url)))


def test_a_file_that_was_replaced_gives_its_new_pixels(tmp_path: Path) -> None:
    with _serving(tmp_path) as (url, handler):
        handler.token = ""
        scene, pair = _remote_scene(tmp_path, url)
        stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64, access=PUBLIC.trusting(url))
        replace(pair, pan=pair.pan[:96] // 2).write(tmp_path)
        staged = stage_scene(scene, contract(), str(tmp_path / "b.zarr"), block_px=64, access=PUBLIC.trusting(url))
        assert np.array_equal(SceneStore.open(staged.store_uri).read_pan(whole((96, 128))), pair.pan[:96] // 2)


@pytest.mark.parametrize("status", [403, 404])
def test_a_server_that_refused_is_asked_anew(tmp_path: Path, status: int) -> None:
    with _serving(tmp_path) as (url, handler):
        handler.token = ""
        scene, _ = _remote_scene(tmp_path, url)
        handler.refusal = status
        with pytest.raises((InvalidSceneError, TransientReadError), match=f"HTTP response code: {status}"):
            stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64, access=PUBLIC.trusting(url))
        handler.refusal = 0
        stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64, access=PUBLIC.trusting(url))


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_gone_is_not_tried_again(tmp_path: Path, status: int) -> None:
    with _serving(tmp_path) as (url, handler):
        scene, _ = _remote_scene(tmp_path, url)
        handler.refusal = status
        with pytest.raises(InvalidSceneError, match="there is no such file; check the asset's href"):
            stage_scene(scene, contract(), str(tmp_path / "a.zarr"), block_px=64, access=PUBLIC.trusting(url))


@pytest.mark.parametrize("place", ["bucket/none.tif", "no-bucket/pan.tif"])
@pytest.mark.usefixtures("s3")
def test_an_object_that_is_gone_is_not_tried_again(tmp_path: Path, place: str) -> None:
    scene, _ = _remote_scene(tmp_path, "s3://bucket")
    gone = scene.model_copy(update={"pan": AssetRef(key="pan", href=f"s3://{place}")})
    with pytest.raises(InvalidSceneError, match="there is no such file; check the asset's href"):
        stage_scene(gone, contract(), str(tmp_path / "a.zarr"), block_px=64)


@pytest.mark.parametrize(
    ("match", "href", "goes"),
    [
        ("example.com", "https://example.com/a.tif", True),
        ("example.com", "http://example.com/a.tif", False),
        ("*", "http://example.com:8080/a.tif", False),
        ("http://example.com", "http://example.com:8080/a.tif", True),
        ("http://example.com:8080", "http://example.com:8080/a.tif", True),
        ("http*://*.com", "http://example.com/a.tif", True),
    ],
)
def test_a_token_goes_over_http_only_where_its_profile_says_so(
    tmp_path: Path, match: str, href: str, *, goes: bool
) -> None:
    """Whatever a catalog writes."""
    secret = tmp_path / "headers.json"
    secret.write_text('{"X-Api-Key": "s3cret"}')
    reader = Reader(Access(profiles=(HostProfile(match=(match,), kind="headers", headers_file=str(secret)),)))
    if goes:
        assert reader.request(href) == (href, {"X-Api-Key": "s3cret"})
        return
    with pytest.raises(InvalidSceneError, match=r"not sent over http, .*; put http://example\.com into its match"):
        reader.request(href)
    with (
        closing(StacApi(href.removesuffix("/a.tif"), reader.access)) as api,
        pytest.raises(SinkError, match="not sent over http"),
    ):
        api.delete("c", "i")


def test_profiles_that_cannot_work_say_so(tmp_path: Path) -> None:
    paying = Access(profiles=(HostProfile(match=("s3://usgs-*",), kind="aws", requester_pays=True),))
    with pytest.raises(InvalidSceneError, match=r"the requester pays .* may not spend; set allow_spending"):
        Reader(paying).open("s3://usgs-landsat/a.tif")
    willing = paying.model_copy(update={"allow_spending": True})
    assert Reader(willing).open("s3://usgs-landsat/a.tif").options == {"AWS_REQUEST_PAYER": "requester"}
    open_data = Access(profiles=(HostProfile(match=("s3://maxar-*",), kind="anonymous"),))
    assert Reader(open_data).open("s3://maxar-opendata/a.tif").options == {"AWS_NO_SIGN_REQUEST": "YES"}
    assert Reader(open_data).open("s3://other/a.tif").options == {}
    missing = Access(profiles=(HostProfile(match=("*",), kind="headers", headers_file=str(tmp_path / "no.json")),))
    with pytest.raises(AccessError, match="not readable as a JSON object"):
        Reader(missing).open("https://8.8.8.8/a.tif")
    unsigned = Access(profiles=(HostProfile(match=("*",), kind="signed", sign_url="http://127.0.0.1:9/sign"),))
    with pytest.raises(TransientReadError, match=r"did not sign https://8\.8\.8\.8/a\.tif"):
        Reader(unsigned).open("https://8.8.8.8/a.tif")


@pytest.mark.parametrize(
    ("kind", "fields", "fault"),
    [
        ("headers", {}, "kind headers needs headers_file; add it"),
        ("signed", {"sign_url": ""}, "kind signed needs sign_url; add it"),
        ("anonymous", {"requester_pays": True}, "kind anonymous has no use for requester_pays"),
        ("aws", {"headers_file": "h.json", "sign_url": "http://s"}, "no use for headers_file, sign_url; remove it"),
    ],
)
def test_a_profile_holds_what_its_kind_needs(kind: str, fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        HostProfile(match=("example.com",), kind=kind, **fields)


class _Elsewhere(Quiet):
    """Sends readers on: ``/here/x`` to a file of a host, with and without permission to be read."""

    target: ClassVar[str]
    seen: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.seen.append(f"{self.path} {self.headers.get('X-Key', '-')}")
        self.send_response(302)
        self.send_header("Location", f"{self.target}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()


@contextmanager
def _redirecting(target: str, host: str = "127.0.0.1") -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []
    handler = type("Handler", (_Elsewhere,), {"target": target, "seen": seen})
    with http_server(handler, host) as url:
        yield url, seen


def test_a_redirect_is_followed_only_where_the_rules_allow(tmp_path: Path) -> None:
    with _serving(tmp_path) as (url, handler), _redirecting(url) as (near, seen):
        handler.token = ""
        scene, pair = _remote_scene(tmp_path, near)
        staged = stage_scene(scene, contract(), str(tmp_path / "s.zarr"), block_px=64, access=PUBLIC.trusting(near))
        assert np.array_equal(SceneStore.open(staged.store_uri).read_pan(whole((128, 128))), pair.pan)
        assert seen
    with _redirecting("http://127.0.0.1:9", host="127.0.0.2") as (private, reached), _redirecting(private) as (near, _):
        scene, _ = _remote_scene(tmp_path, near)
        with pytest.raises(InvalidSceneError, match=r"asset pan: .*redirects to .*private address 127\.0\.0\.2"):
            stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64, access=PUBLIC.trusting(near))
        assert reached == []
    with _redirecting("", host="127.0.0.1") as (circle, seen):
        with pytest.raises(InvalidSceneError, match="redirects more than 5 times"):
            Reader(PUBLIC.trusting(circle)).open(f"{circle}/a.tif")
        assert len(seen) == 5


@pytest.mark.parametrize("allow_private", [False, True])
def test_headers_are_not_shown_to_the_host_of_a_redirect(tmp_path: Path, *, allow_private: bool) -> None:
    secret = tmp_path / "headers.json"
    secret.write_text('{"X-Key": "one"}')
    profile = HostProfile(match=("http://127.0.0.1",), kind="headers", headers_file=str(secret))
    with _redirecting("http://127.0.0.1:9") as (other, seen), _redirecting(other) as (first, asked):
        reader = Reader(Access(profiles=(profile,), allow_private=allow_private).trusting(first))
        with pytest.raises(TransientReadError, match=r"127\.0\.0\.1:9/a\.tif cannot be read: ConnectionError"):
            reader.open(f"{first}/a.tif?sig=SECRET")
        assert (asked, seen) == (["/a.tif?sig=SECRET one"], ["/a.tif?sig=SECRET -"])


def test_headers_are_not_shown_to_a_host_that_only_looks_like_theirs(tmp_path: Path) -> None:
    """Of this address, some libraries take what is before the backslash for the host."""
    secret = tmp_path / "headers.json"
    secret.write_text('{"X-Key": "one"}')
    profile = HostProfile(match=("example.com",), kind="headers", headers_file=str(secret))
    with _redirecting("http://127.0.0.1:9") as (stranger, seen):
        with pytest.raises(InvalidSceneError, match=r"libraries do not agree on host example\.com"):
            Reader(Access(profiles=(profile,), allow_private=True)).open(f"{stranger}\\@example.com/a.tif")
        assert seen == []


def test_catalogs_and_the_api_of_results_do_not_show_headers_to_the_host_of_a_redirect(tmp_path: Path) -> None:
    secret = tmp_path / "headers.json"
    secret.write_text('{"X-Key": "one"}')
    profile = HostProfile(match=("http://127.0.0.1",), kind="headers", headers_file=str(secret))
    rules = Access(profiles=(profile,), allow_private=True)
    with _redirecting("http://127.0.0.1:9", host="127.0.0.2") as (other, seen), _redirecting(other) as (first, asked):
        with pytest.raises(SourceError, match="Connection refused"):
            list(discover(f"{first}/catalog.json", contracts=load_contracts(), access=rules))
        with pytest.raises(CatalogUnavailableError, match="Connection refused"):
            StacApi(first, rules).delete("c", "a")
        item = "/collections/c/items/a"
        assert (asked, seen) == (["/catalog.json one", f"{item} one"], ["/catalog.json -", f"{item} -"])


def _write_vrt(path: Path, secret: Path) -> None:
    """Something that reads ``secret``, which is written too."""
    with rasterio.open(secret, "w", driver="GTiff", height=8, width=8, count=1, dtype="uint16", crs="EPSG:32633",
                       transform=from_origin(5e5, 4e6, 1, 1)) as target:  # fmt: skip
        target.write(np.full((1, 8, 8), 7, np.uint16))
    path.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def test_a_remote_vrt_is_not_followed(tmp_path: Path) -> None:
    """A VRT may name any file of the reader's machine; what comes from elsewhere is opened as a plain format only."""
    _write_vrt(tmp_path / "pan.vrt", tmp_path / "secret.tif")
    with _serving(tmp_path) as (url, _):
        scene, _ = _remote_scene(tmp_path, url)
        for name in ("pan.vrt", "pan.tif"):
            (tmp_path / name).write_bytes((tmp_path / "pan.vrt").read_bytes())
            spoiled = scene.model_copy(update={"pan": AssetRef(key="pan", href=f"{url}/{name}?token=one")})
            with pytest.raises(InvalidSceneError, match="not recognized as being in a supported file format"):
                stage_scene(spoiled, contract(), str(tmp_path / "x.zarr"), block_px=64, access=PUBLIC.trusting(url))


@pytest.mark.parametrize("trusting", [False, True])
def test_a_local_vrt_leads_nowhere_else(tmp_path: Path, *, trusting: bool) -> None:
    """Below the roots, and in a catalog on this machine, which may name any file but no private host."""
    (tmp_path / "root").mkdir()
    scene = Pair(np.ones((128, 128), np.uint16), np.ones((3, 32, 32), np.uint16)).write(tmp_path / "root")
    _write_vrt(tmp_path / "root" / "pan.tif", tmp_path / "secret.tif")
    rules = PUBLIC.trusting(str(tmp_path / "root")) if trusting else Access(roots=(str(tmp_path / "root"),))
    with pytest.raises(InvalidSceneError, match=r"asset pan: .*not recognized as being in a supported"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64, access=rules)


def test_a_vrt_beside_a_local_file_is_not_its_mask(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    scene = Pair(np.ones((128, 128), np.uint16), np.ones((3, 32, 32), np.uint16)).write(tmp_path / "root")
    rules = Access(roots=(str(tmp_path / "root"),))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(scene.pan.href, "r+") as target:
        target.write_mask(np.ones((128, 128), bool))
    mask = Path(f"{scene.pan.href}.msk")
    assert open_source(scene.pan.href, rules, "s", "pan").dataset.read_masks(1).all()
    _write_vrt(mask.rename(mask.with_suffix(".MSK")), tmp_path / "secret.tif")
    with pytest.raises(InvalidSceneError, match=r"asset pan: its mask is .*\.MSK; expected a GeoTIFF"):
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64, access=rules)


def test_a_vrt_beside_a_local_file_is_not_followed_as_its_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    scene = Pair(np.ones((128, 128), np.uint16), np.ones((3, 32, 32), np.uint16)).write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as private:
        private.settimeout(0)
        address, overview = f"http://127.0.0.1:{private.getsockname()[1]}/a.tif", Path(f"{scene.pan.href}.ovr")
        _write_vrt(overview, tmp_path / "secret.tif")
        overview.write_text(overview.read_text().replace(str(tmp_path / "secret.tif"), f"/vsicurl/{address}"))
        stage_scene(scene, contract(), str(tmp_path / "x.zarr"), block_px=64, access=PUBLIC.trusting(str(tmp_path)))
        with pytest.raises(BlockingIOError):
            private.accept()


@pytest.mark.parametrize(
    ("driver", "suffix", "options"),
    [
        ("JP2OpenJPEG", ".jp2", {"QUALITY": "100", "REVERSIBLE": "YES"}),
        ("HFA", ".img", {}),
        ("NITF", ".ntf", {"ICORDS": "D"}),
    ],
)
def test_plain_local_formats_are_read_under_rules(
    tmp_path: Path, driver: str, suffix: str, options: dict[str, str]
) -> None:
    pan = np.random.default_rng(5).integers(1, 2000, (128, 128)).astype(np.uint16)
    path = tmp_path / f"other{suffix}"
    with rasterio.open(path, "w", driver=driver, height=128, width=128, count=1, dtype="uint16", crs="EPSG:4326",
                       transform=from_origin(15, 36, 1e-5, 1e-5), **options) as target:  # fmt: skip
        target.write(pan, 1)
    with open_source(str(path), Access(roots=(str(tmp_path),)), "scene", "pan").dataset as dataset:
        assert np.array_equal(dataset.read(1), pan)
