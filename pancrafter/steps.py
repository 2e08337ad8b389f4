"""The steps of a scene as plain functions, without an orchestrator.

claimed: stage -> sharpen -> assess -> publish (-> confirmed). Every step is safe to repeat; the ledger,
not the caller, decides who may work on a scene and what became of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pancrafter import killpoints
from pancrafter.discovery import output_collection_id, planned_recipe
from pancrafter.errors import PancrafterError, UnexpectedError
from pancrafter.ledger import Ledger
from pancrafter.processes import lease_owner
from pancrafter.sensors import SensorContract, contracts_of
from pancrafter.settings import Settings
from pancrafter.states import Lease, SceneKey, State
from pancrafter.types import Quality, Record, Scene, StagedScene, TruthScores

if TYPE_CHECKING:
    from pancrafter.catalog_links import CollectionInfo
    from pancrafter.changes import Change
    from pancrafter.compute import Compute
    from pancrafter.engine import SharpenerSpec
    from pancrafter.item import Cost, Gate, Recipe
    from pancrafter.publish import Published, StaticSink
    from pancrafter.quality import Verdict

Report = Callable[[str], None]
"""Takes a line for people about what is going on."""

_PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class Sharpened:
    """A sharpened store: how it was made and what that cost in this run."""

    spec: SharpenerSpec
    method: str
    blocks: int
    computed_blocks: int
    """Blocks that were not finished before."""
    computed_pixels: int
    seconds: float
    fallback: bool = False


class Outcome(Record):
    """What became of one scene, as the summary table shows it."""

    key: str
    sensor: str
    verdict: Literal["published", "fallback", "held", "refused", "waiting", "failed", "retry later"]
    reason: str = ""
    mpx: float | None = None
    seconds: float | None = None
    mpx_per_s: float | None = None
    quality: Quality | None = None
    truth: tuple[TruthScores, ...] = ()
    item_href: str | None = None
    picture_href: str | None = None

    @property
    def failed(self) -> bool:
        """Whether a person should look at it."""
        return self.verdict in {"failed", "retry later"}

    @property
    def turned_away(self) -> bool:
        """Whether no work was done on it."""
        return self.verdict in {"refused", "waiting"}


# --- one scene ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claimed:
    """A scene this process may work on, and by what: the steps look at nothing else that decides pixels."""

    lease: Lease
    scene: Scene
    contract: SensorContract
    recipe: Recipe
    output_item_id: str
    supersedes: str | None
    fallback_reason: str | None = None
    """Why an earlier attempt gave up the network's result; its classical blocks are kept."""


@contextlib.contextmanager
def claimed(ledger: Ledger, key: str, settings: Settings, report: Report) -> Iterator[Claimed | None]:
    """Hold the lease of a scene for the block; None when somebody else has it, or planned it with another recipe.

    The recipe is what this process would make of the scene now, not what the ledger says: a run with other weights,
    contract or settings may have planned the scene anew since this one found it.

    An error ends the lease as its kind demands (retry, dead letter, release) and is raised again. One that nobody
    foresaw counts as a failed attempt of this scene: others may have no part in its cause.

    Raises:
        UnexpectedError: In place of an error that is none of this package.
    """
    scene_key = SceneKey.parse(key, settings.sink)
    row = ledger.show(scene_key)
    if row is None or row.scene is None:
        yield None
        return
    contracts = contracts_of(settings)
    recipe = planned_recipe(row.scene, settings, contracts)
    lease = ledger.claim(scene_key, lease_owner(), settings.lease_s, recipe=recipe.digest)
    if lease is None:
        if row.state is State.ELIGIBLE and row.recipe != recipe.digest:
            report(f"{key}: left to another run, which planned it since with other weights, contract or settings")
        yield None
        return
    killpoints.at("claimed")
    row = ledger.show(scene_key)
    assert row is not None
    assert row.scene is not None
    try:
        with _kept(ledger, lease):
            yield Claimed(
                lease=lease,
                scene=row.scene,
                contract=contracts[row.scene.sensor],
                recipe=recipe,
                output_item_id=row.output_item_id or "",
                supersedes=row.supersedes,
                fallback_reason=row.measures.get("fallback_reason"),
            )
    except PancrafterError as error:
        ledger.fail(lease, error)
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("%s: a defect; please report it", key)
        unexpected = UnexpectedError(f"{type(error).__name__}: {error}", scene=key)
        ledger.fail(lease, unexpected)
        raise unexpected from error
    except BaseException as error:
        with contextlib.suppress(PancrafterError):  # a lost lease would be taken for the end of this scene only
            ledger.release(lease, f"interrupted: {type(error).__name__}: {error}")
        raise


@contextlib.contextmanager
def _kept(ledger: Ledger, lease: Lease) -> Iterator[None]:
    """Renew a lease in the background: a step may take longer than a lease, and only a dead worker should lose it."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(lease.lease_s / 3):
            with contextlib.suppress(PancrafterError):  # a lost lease is noticed by the next step that needs it
                ledger.renew(lease)

    thread = threading.Thread(target=keep, name=f"lease of {lease.key}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def store_name(item_id: str, sink: str) -> str:
    """Name of the Zarr store in which an output item is made; runs into other sinks may share the state folder."""
    return f"{item_id}.{sink_mark(sink)}.zarr"


def attempt_name(item_id: str, sink: str, fence: int) -> str:
    """Name of the folder of one attempt at an output item's files."""
    return f"{item_id}.{sink_mark(sink)}.{fence}"


def sink_mark(sink: str) -> str:
    """Eight characters that tell what belongs to scenes of one sink from what belongs to those of others."""
    return hashlib.sha256(sink.encode()).hexdigest()[:8]


def store_uri(work: Claimed, settings: Settings) -> str:
    """Where the scene's Zarr store lies while it is in work."""
    return str(Path(settings.state_dir) / "staged" / store_name(work.output_item_id, settings.sink))


def stage(work: Claimed, settings: Settings, compute: Compute, ledger: Ledger) -> StagedScene:
    """Read the source files into the scene's Zarr store; a finished store is kept.

    Raises:
        WeightsError: Those of the recipe are of no use: the scene would be read for nothing.
        BandCountError: They take another number of bands.
    """
    from pancrafter.cube import REACH_PX, stage_scene
    from pancrafter.engine import check_for_scenes

    if work.recipe.weights is not None:
        check_for_scenes(settings.weights, work.recipe.weights_sha256, len(work.scene.bands))
    started = time.perf_counter()
    with compute.active():
        staged = stage_scene(
            work.scene,
            work.contract,
            store_uri(work, settings),
            block_px=settings.block_px,
            reach_px=REACH_PX,
            access=settings.access.trusting(settings.source),
        )
    killpoints.at("stage-written")
    rows, columns = staged.grid.pan.shape_yx
    ledger.advance(
        work.lease,
        State.STAGED,
        stage_seconds=_spent(work, ledger, "stage_seconds") + time.perf_counter() - started,
        bytes_read=staged.bytes_read,
        pixels=rows * columns,
        device=settings.device,
    )
    killpoints.at("staged")
    return staged


def sharpen(
    work: Claimed, staged: StagedScene, settings: Settings, compute: Compute, ledger: Ledger, report: Report
) -> Sharpened:
    """Sharpen every block that is not finished, by the method of the scene's contract."""
    given_up = work.fallback_reason is not None
    if given_up:
        report(f"{work.scene.key}: {work.fallback_reason}; going on with the classical result")
    spec = _sharpener(work, staged, settings, classical=given_up or work.contract.weights == "none")
    recipe = _fallback_recipe(work) if given_up else work.recipe.digest
    sharpened = replace(_sharpen_with(staged, spec, recipe, compute, report), fallback=given_up)
    killpoints.at("sharpen-computed")
    ledger.advance(
        work.lease,
        State.SHARPENED,
        sharpen_seconds=_spent(work, ledger, "sharpen_seconds") + sharpened.seconds,
        blocks=sharpened.blocks,
        computed_blocks=sharpened.computed_blocks,
    )
    killpoints.at("sharpened")
    return sharpened


def _measures(work: Claimed, ledger: Ledger) -> dict[str, Any]:  # Any: JSON
    """What this attempt at the output and earlier ones have noted."""
    row = ledger.show(work.lease.key)
    return {} if row is None else row.measures


def _spent(work: Claimed, ledger: Ledger, measure: str) -> float:
    """Seconds that earlier attempts at this output took in a step: a scene costs all of them."""
    return float(_measures(work, ledger).get(measure, 0))


def _fallback_recipe(work: Claimed) -> str:
    """What the store calls the classical blocks that replace the network's."""
    return f"{work.recipe.digest}-fallback"


def _sharpener(work: Claimed, staged: StagedScene, settings: Settings, *, classical: bool) -> SharpenerSpec:
    """What workers need to sharpen the scene: the network of the recipe, or the classical method in its place."""
    from pancrafter.engine import fit_sharpener
    from pancrafter.store import SceneStore

    return fit_sharpener(
        SceneStore.open(staged.store_uri),
        work.contract,
        "mtf-glp-fs" if classical else "pan-crafter",
        weights=settings.weights,
        sha256=work.recipe.weights_sha256,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
    )


def _sharpen_with(
    staged: StagedScene,
    spec: SharpenerSpec,
    recipe: str,
    compute: Compute,
    report: Report,
) -> Sharpened:
    from pancrafter.store import SceneStore

    started = time.perf_counter()
    store = SceneStore.open(staged.store_uri, "r+")
    store.begin_sharpening(recipe)
    pending = store.pending_blocks()
    total, pixels, last = store.block_count, 0, started
    if len(pending) < total:
        report(f"{staged.scene.key}: {total - len(pending)} of {total} blocks were finished before and are kept")
    for number, made in enumerate(compute.map(sharpen_block_task, pending, staged.store_uri, spec, on_gpu=True), 1):
        pixels += made
        now = time.perf_counter()
        if now - last > _PROGRESS_EVERY_S or number == len(pending):
            last, rate = now, pixels / (now - started)
            left = (len(pending) - number) * (now - started) / number
            finished = total - len(pending) + number
            report(f"{staged.scene.key}: {finished}/{total} blocks, {rate / 1e6:.2f} Mpx/s, ETA {left:.0f} s")
    return Sharpened(
        spec=spec,
        method="mtf-glp-fs" if spec.glp else "pan-crafter",
        blocks=total,
        computed_blocks=len(pending),
        computed_pixels=pixels,
        seconds=time.perf_counter() - started,
    )


def sharpen_block_task(block: tuple[int, int], uri: str, spec: SharpenerSpec) -> int:
    """On a worker: sharpen one block, and say how many pixels it has; one that is finished is left alone.

    Dask asks again for the blocks of a lost worker.
    """
    from pancrafter.engine import build_sharpener, sharpen_block
    from pancrafter.store import SceneStore

    store = SceneStore.open(uri, "r+")
    if not store.is_done(block):
        sharpen_block(store, block, build_sharpener(spec))
    return math.prod(part.stop - part.start for part in store.block_window(block))


@dataclass(frozen=True)
class Assessed:
    """The quality of what will be published, and whether the classical result had to stand in."""

    quality: Quality
    sharpened: Sharpened
    gate: Gate
    truth: tuple[TruthScores, ...] = ()


def assess(
    work: Claimed,
    staged: StagedScene,
    sharpened: Sharpened,
    settings: Settings,
    compute: Compute,
    ledger: Ledger,
    report: Report,
) -> Assessed:
    """Measure the result and apply the sensor's rule: pass, replace by the classical result (labelled), or hold.

    The classical result is measured too; where it fails as well, or the fault lies in the input, the scene is held
    until a person releases or rejects it. A release counts for this output item and is named in it.
    """
    from pancrafter.assess import measure_scene
    from pancrafter.item import Gate
    from pancrafter.store import SceneStore
    from pancrafter.truth import score_against_truth

    started = time.perf_counter()
    contract = work.contract
    rule, ratio = contract.quality, staged.grid.ratio
    given_up: str | None = _measures(work, ledger).get("fallback_reason")  # by this attempt or an earlier one
    classical = given_up is not None or sharpened.method != "pan-crafter"
    if given_up is not None and not sharpened.fallback:  # this step failed since it gave up the network's result
        sharpened = _sharpen_instead(work, staged, settings, compute, ledger, report)
    quality, raster = measure_scene(staged, sharpened.method, sharpened.spec, contract, compute)
    verdict, reason = rule.verdict(quality, ratio, classical=classical)
    if verdict == "fallback":
        report(f"{work.scene.key}: {reason}; trying the classical result instead")
        killpoints.at("fallback-decided")
        # Noted first: a worker that goes on after a crash keeps the classical blocks that are finished by then.
        ledger.note(work.lease, fallback_reason=reason)
        killpoints.at("fallback-begun")
        given_up, sharpened = reason, _sharpen_instead(work, staged, settings, compute, ledger, report)
        quality, raster = measure_scene(staged, sharpened.method, sharpened.spec, contract, compute)
        verdict, reason = rule.verdict(quality, ratio, classical=True)
    if given_up is not None:
        verdict, reason = _second_verdict((verdict, reason), given_up, sharpened)
    gate = Gate(verdict=verdict, reason=reason)
    if verdict == "hold":
        gate = _approved(gate, work, ledger)
    SceneStore.open(staged.store_uri, "r+").write_consistency(raster)
    truth = score_against_truth(staged, settings, sharpened.method, contract, compute)
    killpoints.at("assess-measured")
    ledger.advance(
        work.lease,
        State.ASSESSED,
        reason,
        assess_seconds=_spent(work, ledger, "assess_seconds") + time.perf_counter() - started,
        quality=quality.model_dump(),
        gate=gate.model_dump(),
        truth=[score.model_dump() for score in truth],
    )
    killpoints.at("assessed")
    return Assessed(quality=quality, sharpened=sharpened, gate=gate, truth=truth)


def _sharpen_instead(
    work: Claimed, staged: StagedScene, settings: Settings, compute: Compute, ledger: Ledger, report: Report
) -> Sharpened:
    """The classical result in place of the network's."""
    spec = _sharpener(work, staged, settings, classical=True)
    sharpened = _sharpen_with(staged, spec, _fallback_recipe(work), compute, report)
    ledger.note(work.lease, fallback_computed_blocks=sharpened.computed_blocks)
    return replace(sharpened, fallback=True)


def _second_verdict(classical: tuple[str, str], network_reason: str, sharpened: Sharpened) -> tuple[Verdict, str]:
    """The word on a scene whose network result was given up, after the classical one was judged too."""
    verdict, reason = classical
    if verdict == "hold":
        return "hold", f"network: {network_reason}; {sharpened.method}: {reason}"
    return "fallback", network_reason


def _approved(gate: Gate, work: Claimed, ledger: Ledger) -> Gate:
    """The gate's word, or a person's where one has released exactly this output item."""
    approval = _measures(work, ledger).get("approved")
    if not approval or approval.get("output_item_id") != work.output_item_id:
        return gate
    return gate.model_copy(update={"verdict": "released", "released_because": str(approval.get("reason", ""))})


# --- publish --------------------------------------------------------------------------------------------------------


def publish(
    work: Claimed, staged: StagedScene, assessed: Assessed, settings: Settings, ledger: Ledger, report: Report
) -> Outcome:
    """Write the files, put them and the item into the output catalog, read them back, announce and confirm the scene.

    Repeated under the same lease after a failure it goes on to the end, and changes nothing that is there already.
    A scene that the gate holds is set aside instead, with its staged pixels, until a person decides.
    """
    from pancrafter.item import SHARPENED, build_item
    from pancrafter.models import ensure_model
    from pancrafter.product_files import write_assets
    from pancrafter.publish import StaticSink

    if assessed.gate.verdict == "hold":
        return _set_aside(work, assessed, ledger, report)

    sharpened, started = assessed.sharpened, time.perf_counter()
    recipe, cost = _used_recipe(work, sharpened), _cost(work, staged, sharpened, settings, ledger)
    attempt = attempt_name(work.output_item_id, settings.sink, work.lease.fence)
    folder = Path(settings.state_dir) / "attempts" / attempt
    bands = work.contract.subset(work.scene.bands)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        assets, sink = write_assets(staged, bands, folder, settings), StaticSink(settings.sink)
        killpoints.at("files-written")
        model_link = ensure_model(sink, recipe, settings.weights)
        item = build_item(
            staged,
            assessed.quality,
            item_id=work.output_item_id,
            collection_id=output_collection_id(work.scene.collection),
            recipe=recipe,
            bands=bands,
            assets=assets,
            fallback=sharpened.fallback,
            gate=assessed.gate,
            model_link=model_link,
            cost=cost,
        )
        report(f"{work.scene.key}: publishing {work.output_item_id}")
        published = sink.publish(
            item,
            assets,
            collection=_collection_info(work.scene),
            supersedes=work.supersedes,
            guard=lambda: ledger.renew(work.lease),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _tell_stac_api(published, settings)
    seconds = cost.seconds + time.perf_counter() - started
    killpoints.at("read-back")
    if not _was_published_before(work.lease, ledger):
        ledger.advance(work.lease, State.PUBLISHED, published.href)
    killpoints.at("published")
    told = announce(sink, published, returned=ledger.withdrawn_at(work.lease.key) is not None)
    if told is not None:
        ledger.know_catalog(settings.sink, told.name)
    killpoints.at("announced")
    ledger.advance(
        work.lease,
        State.CONFIRMED,
        "read back",
        seconds=seconds,
        staging_bytes=cost.staging_bytes,
        money=settings.money(seconds),
        href=published.assets[SHARPENED],
    )
    killpoints.at("confirmed")
    if not settings.keep_staged:
        shutil.rmtree(staged.store_uri, ignore_errors=True)
    return Outcome(
        key=work.scene.key,
        sensor=work.scene.sensor,
        verdict="fallback" if sharpened.fallback else "published",
        reason=assessed.gate.reason,
        mpx=math.prod(staged.grid.pan.shape_yx) / 1e6,
        seconds=seconds,
        mpx_per_s=cost.mpx_per_s,
        quality=assessed.quality,
        truth=assessed.truth,
        item_href=published.href,
        picture_href=published.assets.get("overview"),
    )


def _cost(work: Claimed, staged: StagedScene, sharpened: Sharpened, settings: Settings, ledger: Ledger) -> Cost:
    """What the scene has cost up to its publication, all attempts at it together."""
    from pancrafter.item import Cost

    spent = _measures(work, ledger)
    seconds = sum(float(spent.get(f"{step}_seconds", 0)) for step in ("stage", "sharpen", "assess"))
    sharpening = sharpened.seconds if sharpened.fallback else float(spent.get("sharpen_seconds", 0))
    whole = sharpened.computed_blocks == sharpened.blocks
    return Cost(
        seconds=seconds,
        sharpen_seconds=sharpening,
        gpu_seconds=None if settings.device == "cpu" else sharpening,
        mpx_per_s=sharpened.computed_pixels / sharpened.seconds / 1e6 if whole else None,
        bytes_read=staged.bytes_read,
        staging_bytes=_bytes_on_disk(staged.store_uri),
        money=settings.money(seconds),
        device=settings.device,
    )


def _was_published_before(lease: Lease, ledger: Ledger) -> bool:
    """Whether this step got as far before, under the same lease, and is repeated because what follows failed."""
    row = ledger.show(lease.key)
    return row is not None and (row.state, row.fence) == (State.PUBLISHED, lease.fence)


def _bytes_on_disk(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _set_aside(work: Claimed, assessed: Assessed, ledger: Ledger, report: Report) -> Outcome:
    report(f"{work.scene.key}: held for a person: {assessed.gate.reason}; see `pancrafter held list`")
    ledger.advance(work.lease, State.HELD, assessed.gate.reason)
    return Outcome(
        key=work.scene.key,
        sensor=work.scene.sensor,
        verdict="held",
        reason=assessed.gate.reason,
        quality=assessed.quality,
        truth=assessed.truth,
    )


def announce(sink: StaticSink, published: Published, *, returned: bool = False) -> Change | None:
    """Tell the change feed, and give what was new to it; ``returned`` as it takes it.

    The item was read back before, and the scene is confirmed after: a crash in between leaves a scene that is
    published again (nothing changes) and announced if it was not yet.
    """
    from pancrafter.changes import ChangeFeed

    feed = ChangeFeed(sink.store)
    item = sink.item(published.collection_id, published.item_id)
    told = feed.announce("new", item, once=not published.changed, returned=returned)
    for item_id in published.superseded:
        old = sink.item(published.collection_id, item_id)
        feed.announce("superseded", old, successor=published.item_id, once=not published.changed)
    return told


def _tell_stac_api(published: Published, settings: Settings) -> None:
    """Where there is a STAC API: the item, after the older ones that it supersedes, is in it too and is read back."""
    if settings.catalog_url is None:
        return
    from pancrafter.publish import StaticSink
    from pancrafter.stac_api import StacApi

    sink = StaticSink(settings.sink)
    with contextlib.closing(StacApi(settings.catalog_url, settings.access)) as api:
        for item_id in (*published.superseded, published.item_id):
            api.send(sink, published.collection_id, item_id)


def _used_recipe(work: Claimed, sharpened: Sharpened) -> Recipe:
    if not sharpened.fallback:
        return work.recipe
    return work.recipe.model_copy(
        update={"method": sharpened.method, "weights": None, "weights_sha256": None, "settings": {}}
    )


def _collection_info(scene: Scene) -> CollectionInfo:
    from pancrafter.catalog_links import CollectionInfo
    from pancrafter.item import stac_providers

    return CollectionInfo(
        id=output_collection_id(scene.collection),
        title=f"{scene.collection}, sharpened",
        description=f"Scenes of {scene.collection} fused with their panchromatic band by pancrafter.",
        license=str(scene.properties.get("license", "other")),
        providers=stac_providers(scene.properties.get("providers")),
    )
