"""The verdict on one STAC document, as ``pancrafter sensors check`` states it.

It says what recognition made of an item, how far its metadata can be believed, and what the file headers must decide.
One item may deserve several verdicts; the first of these holds, because it is what somebody must know first:

1. ``defect`` without assets: no valid item, nothing else can be said;
2. ``refused``: no work on the metadata would make it a scene to sharpen;
3. ``pair``: it becomes a scene together with other items;
4. ``defect`` with assets: usable, but its metadata contradict themselves or STAC; ``defects`` says what was assumed;
5. ``needs_header``: usable, but no grid is declared for PAN and for MS;
6. ``eligible``.

Defects of refused items are listed too. Verdicts 4 to 6 enter the pipeline, where the headers decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pancrafter.examine import DeclaredGrid, Findings, declared_grid, examine
from pancrafter.types import AssetRef, Record, Refusal, Scene

Verdict = Literal["eligible", "needs_header", "pair", "refused", "defect"]


class Judgement(Record):
    """The verdict on a document, ready to be printed as JSON."""

    verdict: Verdict
    reason: str
    code: str | None = None
    sensor: str | None = None
    collection: str | None = None
    item: str | None = None
    acquired: str | None = None
    bands: tuple[str, ...] = ()
    pan: AssetRef | None = None
    ms: tuple[AssetRef, ...] = ()
    pan_grid: DeclaredGrid | None = None
    ms_grid: DeclaredGrid | None = None
    defects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def judge(body: Mapping[str, Any], outcome: Scene | Refusal) -> Judgement:
    """The verdict on the item ``body``, of which recognition made ``outcome``."""
    if isinstance(outcome, Refusal):
        return _judge_refusal(body, outcome)
    keys = tuple(dict.fromkeys((outcome.pan.key, *(ref.key for ref in outcome.ms))))
    findings = examine(body, keys)
    pan_grid, ms_grid = declared_grid(body, outcome.pan.key), declared_grid(body, outcome.ms[0].key)
    verdict, reason = _usable(outcome, findings, pan_grid, ms_grid)
    return Judgement(
        verdict=verdict,
        reason=reason,
        sensor=outcome.sensor,
        collection=outcome.collection,
        item=outcome.item_id,
        acquired=outcome.acquired,
        bands=outcome.bands,
        pan=outcome.pan,
        ms=outcome.ms,
        pan_grid=pan_grid,
        ms_grid=ms_grid,
        defects=findings.defects,
        notes=(*findings.notes, *_assumed_bands(outcome)),
    )


def _assumed_bands(scene: Scene) -> Iterator[str]:
    """Files whose bands the item does not name: the usual order was assumed."""
    for key in dict.fromkeys(ref.key for ref in scene.ms if ref.assumed and ref.band > 1):
        inside = sorted((ref.band, name) for ref, name in zip(scene.ms, scene.bands, strict=True) if ref.key == key)
        order = ", ".join(name for _, name in inside)
        yield f"{key}: no bands are named; taken in the order {order}, unless the file's header names them"


def judge_other(body: Mapping[str, Any], kind: str) -> Judgement:
    """The verdict on a catalog or collection, which holds items and is none."""
    reason = f"found a STAC {kind}, expected an item; give it to discovery (--source), which walks to its items"
    known = body.get("item_assets")
    if isinstance(known, Mapping) and known and not any(_says_pan(key, asset) for key, asset in known.items()):
        reason += "; none of its item_assets is called or labelled PAN"
    return Judgement(verdict="refused", reason=reason, code="no_item", collection=str(body.get("id")))


def _judge_refusal(body: Mapping[str, Any], refusal: Refusal) -> Judgement:
    verdict: Verdict = "refused"
    if refusal.code == "malformed":
        verdict = "defect"
    elif refusal.code == "part_of_scene":
        verdict = "pair"
    findings = Findings() if refusal.code == "malformed" else examine(body)
    reason = refusal.reason
    if findings.defects and verdict == "refused":
        reason += f"; besides, its metadata are defective: {findings.defects[0]}"
    return Judgement(
        verdict=verdict,
        reason=reason,
        code=refusal.code,
        sensor=refusal.sensor,
        collection=refusal.collection,
        item=refusal.item_id,
        defects=findings.defects,
        notes=findings.notes,
    )


def _usable(scene: Scene, findings: Findings, pan: DeclaredGrid, ms: DeclaredGrid) -> tuple[Verdict, str]:
    recognised = f"recognised as {scene.sensor} with PAN and {len(scene.bands)} MS bands"
    if findings.defects:
        more = f" (and {len(findings.defects) - 1} more)" if len(findings.defects) > 1 else ""
        return "defect", f"{recognised}; metadata defect: {findings.defects[0]}{more}"
    if not _grids_known(pan, ms):
        return "needs_header", f"{recognised}, but no grid is declared for both; the file headers are read for it"
    return "eligible", f"{recognised}; the file headers decide"


def _grids_known(pan: DeclaredGrid, ms: DeclaredGrid) -> bool:
    """Both sizes in pixels are known; one that both inherit from the item can be true for one of them at most."""
    return bool(pan.shape and ms.shape) and not (pan.inherited_shape and ms.inherited_shape)


def _says_pan(key: str, asset: object) -> bool:
    fields = asset if isinstance(asset, Mapping) else {}
    bands = fields.get("bands") or fields.get("eo:bands") or ()
    texts = [key, *(str(value) for band in bands if isinstance(band, Mapping) for value in band.values())]
    return any("pan" in text.casefold().replace("japan", "") for text in texts)
