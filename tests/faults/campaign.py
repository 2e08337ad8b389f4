"""One seeded campaign: run, kill, recover, compare. ``make faults RUNS=200 SEED=1``; ``python -m faults --help``.

Every run draws how it is orchestrated, how its scenes are sharpened, which process dies, and where. The same seed draws
the same runs; where a kill at a time (and not at a named point) hits is up to the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pystac
import rasterio
from networks import random_network
from small_archive import add_scene

from faults import reader
from faults.processes import MARK, PROJECT, Started, asked, family, fork, kill, left_behind, spawn
from pancrafter import cli
from pancrafter.errors import PancrafterError
from pancrafter.killpoints import POINTS, VARIABLE
from pancrafter.ledger import Ledger, SceneKey, State
from pancrafter.model.weights import save_checkpoint
from pancrafter.store import SceneStore

Orchestration = Literal["process", "pair", "local dask", "remote dask", "flow"]
Quality = Literal["classical", "fallback", "network"]

SCENES = ("one", "two")
COLLECTION = "geoeye-1"
TIMEOUT_S = 420
LEAST_RUNS = 3
"""Played even where the time that was allowed is over."""

ORCHESTRATIONS: dict[Orchestration, float] = {
    "process": 0.62, "pair": 0.14, "local dask": 0.1, "remote dask": 0.07, "flow": 0.07,
}  # fmt: skip
"""How often each is drawn: those that start many processes take ten times as long."""

QUALITIES: dict[Quality, float] = {"classical": 0.45, "fallback": 0.35, "network": 0.2}
"""Contract without network; a network whose results are all replaced; the shipped one, which passes."""


@dataclass(frozen=True)
class Archive:
    """The source and the ways to sharpen it, with what an undisturbed run publishes for each."""

    root: Path
    undisturbed: dict[Quality, dict[str, str]]
    """Quality -> output item id -> sha256 of its sharpened image."""

    @property
    def source(self) -> Path:
        return self.root / "source"

    def options(self, quality: Quality) -> list[str]:
        extra = {
            "classical": ["--contracts-dir", str(self.root / "contracts")],
            "fallback": ["--weights", str(self.root / "random.safetensors")],
            "network": [],
        }
        return ["--source", str(self.source), *extra[quality]]


@dataclass(frozen=True)
class Fault:
    """What is killed: the process that passes a point for the nth time, or one of the family after a while."""

    point: str | None
    nth: int = 1
    after_share: float = 0.0
    """Share of an undisturbed run's time after which a random process of the family dies, without a point."""
    pick: float = 0.0

    def __str__(self) -> str:
        return f"at {self.point}, time {self.nth}" if self.point else f"after {self.after_share:.0%}"


@dataclass
class Case:
    """One run of the campaign and everything that was lost in it."""

    number: int
    orchestration: Orchestration
    quality: Quality
    fault: Fault
    keep_staged: bool
    folder: Path
    losses: list[str] = field(default_factory=list)
    killed: str = ""
    seconds: float = 0.0
    polls: int = 0

    def __str__(self) -> str:
        killed = self.killed or "finished before the kill"
        return f"{self.orchestration}, {self.quality}, kill {self.fault}: {killed}"


def prepare(root: Path, qualities: Sequence[Quality]) -> Archive:
    """Make the source, the weights, the contract, and an undisturbed run of each quality."""
    root.mkdir(parents=True)
    asked(lambda: _make_source(root), root)
    archive = Archive(root, {})
    for quality in qualities:
        case = Case(0, "process", quality, Fault(None), keep_staged=False, folder=root / f"undisturbed-{quality}")
        case.folder.mkdir()
        started = time.monotonic()
        status = _start_run(case, archive, {}).wait(TIMEOUT_S)
        case.seconds = time.monotonic() - started
        assert status == 0, (case.folder / "run.log").read_text()
        archive.undisturbed[quality] = _published(case)
        assert len(archive.undisturbed[quality]) == len(SCENES)
        _SECONDS[quality] = case.seconds
    return archive


def _make_source(root: Path) -> None:
    for day, name in enumerate(SCENES, 1):
        add_scene(root / "source", name, side_px=192, seed=day, day=day)
    save_checkpoint(root / "random.safetensors", random_network(0, width=16), {})
    bundled = PROJECT / "pancrafter" / "contracts" / f"{COLLECTION}.yaml"
    (root / "contracts").mkdir()
    text = bundled.read_text().replace("weights: default", "weights: none")
    (root / "contracts" / bundled.name).write_text(text)


_SECONDS: dict[Quality, float] = {}
"""How long an undisturbed run of each quality took here."""


def draw(
    number: int, seed: int, folder: Path, *, only: Orchestration | None = None, quality: Quality | None = None
) -> Case:
    """The case with this number; the same for the same seed, whatever was drawn before."""
    rng = random.Random(f"{seed}/{number}")
    drawn = rng.choices(list(ORCHESTRATIONS), list(ORCHESTRATIONS.values()))[0]
    orchestration = only or drawn
    drawn_quality = rng.choices(list(QUALITIES), list(QUALITIES.values()))[0]
    quality = quality or drawn_quality
    points = [p for p in POINTS if quality == "fallback" or not p.startswith("fallback")]
    if rng.random() < (0.8 if orchestration in {"process", "pair"} else 0.5):
        point = rng.choice(points)
        most = {"block-written": 8, "block-done": 8, "asset-put": 8, "found": 1}.get(point, len(SCENES))
        fault = Fault(point, nth=rng.randint(1, most))
    else:
        fault = Fault(None, after_share=rng.uniform(0.02, 1.1), pick=rng.random())
    return Case(number, orchestration, quality, fault, rng.random() < 0.3, folder / f"run-{number:04d}")


def play(case: Case, archive: Archive) -> Case:
    """Run, kill, recover with the normal commands, and note every loss."""
    started = time.monotonic()
    case.folder.mkdir(parents=True)
    run_mark = str(case.folder)
    stop, report = case.folder / "stop", case.folder / "reader.json"
    watcher = fork(lambda: reader.watch(case.folder / "sink", stop, report), case.folder / "reader.log", {})
    try:
        with _cluster(case, run_mark) as environment:
            _disturb(case, archive, run_mark, environment)
        before = {name: _Before(**was) for name, was in asked(lambda: _finished_blocks(case), case.folder).items()}
        recoveries = _recover(case, archive, run_mark)
        _check_blocks(case, before, recoveries)
        _command(case, "sweep", *_places(case))
        if _command(case, "census", "--checksums", *_places(case), *archive.options(case.quality)) != 0:
            case.losses.append(f"the census is not clean: {_tail(case)}")
    except TimeoutError as err:
        case.losses.append(f"hangs: {err}")
    finally:
        stop.touch()
        watcher.wait(60)
        case.losses += [f"left running: {name}" for name in left_behind(run_mark, 5)]
    seen = json.loads(report.read_text())
    case.polls = seen["polls"]
    case.losses += [f"a reader saw: {fault}" for fault in seen["faults"]]
    _check_catalog(case, archive)
    _check_leftovers(case)
    case.seconds = time.monotonic() - started
    return case


# --- disturb and recover --------------------------------------------------------------------------------------------


def _places(case: Case) -> list[str]:
    return ["--sink", str(case.folder / "sink"), "--state-dir", str(case.folder / "state")]


def _start_run(case: Case, archive: Archive, environment: dict[str, str], *, log: str = "run.log") -> Started:
    """The command that does the work, as its user would start it."""
    settings = {
        MARK: str(case.folder),
        "PANCRAFTER_BLOCK_PX": "128",
        "PANCRAFTER_KEEP_STAGED": str(case.keep_staged).lower(),
        "PANCRAFTER_WORKERS": {"local dask": "2", "flow": "0"}.get(case.orchestration, "0"),
        "OMP_NUM_THREADS": "1",
    }
    options = archive.options(case.quality)
    if case.orchestration == "flow":
        names = {"--contracts-dir": "PANCRAFTER_CONTRACTS_DIR", "--weights": "PANCRAFTER_WEIGHTS"}
        settings |= {names[o]: v for o, v in zip(options[::2], options[1::2], strict=True) if o in names}
        command = [sys.executable, "-m", "flows", *_places(case), "--source", str(archive.source)]
        return spawn(command, case.folder / log, settings | environment)
    arguments = ["run", *options, *_places(case)]
    if case.orchestration in {"process", "pair"}:
        return fork(lambda: cli.app(arguments), case.folder / log, settings | environment)
    command = [sys.executable, "-m", "pancrafter.cli", *arguments]
    return spawn(command, case.folder / log, settings | environment)


@contextlib.contextmanager
def _cluster(case: Case, run_mark: str):
    """A Dask scheduler and a worker as an operator starts them, for runs that use one; they go with the run."""
    if case.orchestration != "remote dask":
        yield {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "distributed.cli"]
    environment = {MARK: run_mark, "OMP_NUM_THREADS": "1"}
    log = case.folder / "dask.log"
    kill_at = _kill_environment(case)
    parts = [
        spawn([*dask[:2], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port),
               "--no-dashboard", "--no-show"], log, environment),
        spawn([*dask[:2], "distributed.cli.dask_worker", address, "--nthreads", "1", "--resources", "GPU=1",
               "--no-dashboard", "--nworkers", "1"], log, environment | kill_at),
    ]  # fmt: skip
    try:
        yield {"PANCRAFTER_DASK_SCHEDULER": address, **kill_at}
    finally:
        for part in parts:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.pid, 9)
            part.wait(30)


def _kill_environment(case: Case) -> dict[str, str]:
    if case.fault.point is None:
        return {}
    token = case.folder / "token"
    token.touch()
    return {VARIABLE: f"{case.fault.point}:{case.fault.nth}:{token}"}


def _disturb(case: Case, archive: Archive, run_mark: str, environment: dict[str, str]) -> None:
    environment = environment | (_kill_environment(case) if case.orchestration != "remote dask" else {})
    started = [_start_run(case, archive, environment)]
    if case.orchestration == "pair":
        started.append(_start_run(case, archive, environment, log="second.log"))
    if case.fault.point is None:
        case.killed = _kill_after(case, started, run_mark)
    for process in started:
        process.wait(TIMEOUT_S)
    if case.fault.point is not None and not (case.folder / "token").exists():
        case.killed = "killed there"
    if case.orchestration != "remote dask":  # whose cluster is an operator's and goes on
        case.losses += [f"left running after the kill: {name}" for name in left_behind(run_mark, 30)]


def _kill_after(case: Case, started: list[Started], run_mark: str) -> str:
    """``kill -9`` a random process of the family at a random time; says which."""
    begin = {"local dask": 12.0, "remote dask": 12.0, "flow": 25.0}.get(case.orchestration, 0.0)
    deadline = time.monotonic() + case.fault.after_share * (_SECONDS[case.quality] + begin)
    while time.monotonic() < deadline and any(process.poll() is None for process in started):
        time.sleep(0.01)
    import psutil

    living = {process.pid: process for process in family(run_mark)}
    for one in started:
        if one.poll() is None:
            living[one.pid] = psutil.Process(one.pid)
    candidates = [living[pid] for pid in sorted(living)]
    if not candidates:
        return ""
    victim = candidates[int(case.fault.pick * len(candidates))]
    with contextlib.suppress(psutil.Error):
        name = " ".join(victim.cmdline()[1:4])[-60:] if victim.pid not in {s.pid for s in started} else "the run itself"
        return f"killed {name}" if kill(victim) else ""
    return ""


def _recover(case: Case, archive: Archive, run_mark: str) -> int:
    """What an operator does after a bad night: run again, and give what pauses or was given up another try."""
    for attempt in range(1, 4):
        status = _start_run(case, archive, {}, log="recovery.log").wait(TIMEOUT_S)
        case.losses += [f"left running after recovery: {name}" for name in left_behind(run_mark, 30)]
        with _ledger(case) as ledger:
            counts = ledger.counts()
        if status == 0 and counts[State.CONFIRMED] == len(SCENES):
            return attempt
        _command(case, "redrive", "--state", "eligible", "--state", "dead", *_places(case))
    case.losses.append(f"not everything is done after {attempt} recoveries: {counts}; {_tail(case, 'recovery.log')}")
    return attempt


def _command(case: Case, *words: str) -> int:
    log = case.folder / "commands.log"
    environment = {"PANCRAFTER_KEEP_STAGED": "false"}
    return fork(lambda: cli.app(list(words)), log, environment).wait(TIMEOUT_S)


def _tail(case: Case, log: str = "commands.log") -> str:
    return (case.folder / log).read_text()[-1500:]


# --- what must hold -------------------------------------------------------------------------------------------------


def _ledger(case: Case) -> Ledger:
    return Ledger(f"sqlite:///{case.folder / 'state' / 'ledger.db'}")


def _key(case: Case, scene: str) -> SceneKey:
    return SceneKey(sink=str(case.folder / "sink"), collection=COLLECTION, item_id=scene)


@dataclass(frozen=True)
class _Before:
    """The blocks of a scene when everything was dead."""

    total: int
    kept: int
    """Finished blocks that the recovery has use for."""
    shards: dict[str, int]
    """Modification time of their files."""


def _finished_blocks(case: Case) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if not (case.folder / "state" / "ledger.db").exists():
        return found
    with _ledger(case) as ledger:
        rows = ledger.rows()
    for row in rows:
        path = case.folder / "state" / "staged" / f"{row.output_item_id}.zarr"
        if row.state is State.CONFIRMED or not path.exists():
            continue
        with contextlib.suppress(PancrafterError):
            store = SceneStore.open(str(path))
            if store.recipe is None:
                continue
            given_up = "fallback_reason" in row.measures
            useful = store.recipe.endswith("-fallback") == given_up
            done = [(int(y), int(x)) for y, x in zip(*store.done_flags().nonzero(), strict=True)] if useful else []
            shards = [path / "sharpened" / "c" / "0" / str(y) / str(x) for y, x in done]
            times = {str(shard): shard.stat().st_mtime_ns for shard in shards}
            found[row.key.item_id] = {"total": store.block_count, "kept": len(done), "shards": times}
    return found


def _check_blocks(case: Case, before: dict[str, _Before], recoveries: int) -> None:
    """No finished block was computed again by the recovery."""
    with _ledger(case) as ledger:
        rows = {row.key.item_id: row for row in ledger.rows()}
    for scene, was in before.items():
        computed = rows[scene].measures.get("computed_blocks")
        if recoveries == 1 and computed != was.total - was.kept:
            case.losses.append(f"{scene}: {was.kept} of {was.total} blocks were finished, but {computed} computed")
        if case.keep_staged and "fallback_computed_blocks" not in rows[scene].measures:
            again = [shard for shard, when in was.shards.items() if Path(shard).stat().st_mtime_ns != when]
            case.losses += [f"{scene}: finished block {name} was written again" for name in again]


def _published(case: Case) -> dict[str, str]:
    """Output item id -> sha256 of the sharpened image, of every current item, each file read by rasterio."""
    return dict(asked(lambda: _read_catalog(case.folder / "sink"), case.folder))


def _read_catalog(sink: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in pystac.Catalog.from_file(str(sink / "catalog.json")).get_items(recursive=True):
        href = item.assets["sharpened"].get_absolute_href()
        assert href is not None
        with rasterio.open(href) as image:
            assert image.read().any()
        assert item.id not in found, f"{item.id} is linked twice"
        found[item.id] = hashlib.sha256(Path(href).read_bytes()).hexdigest()
    return found


def _check_catalog(case: Case, archive: Archive) -> None:
    expected = archive.undisturbed[case.quality]
    try:
        found = _published(case)
    except Exception as err:  # noqa: BLE001 - whatever a reader stumbles over is a loss
        case.losses.append(f"the catalog cannot be read: {type(err).__name__}: {err}")
        return
    if found != expected:
        case.losses.append(f"published {found}, an undisturbed run {expected}")
    announced = Counter(
        event["item_id"]
        for path in (case.folder / "sink" / "changes").glob("*/*.jsonl")
        for event in map(json.loads, path.read_text().splitlines())
        if event["type"] == "new"
    )
    if announced != dict.fromkeys(expected, 1):
        case.losses.append(f"announced {dict(announced)}, each item once was expected")
    with _ledger(case) as ledger:
        for scene in SCENES:
            confirmed = [event for event in ledger.why(_key(case, scene)) if event.after is State.CONFIRMED]
            if len(confirmed) != 1:
                case.losses.append(f"{scene} was published {len(confirmed)} times")


def _check_leftovers(case: Case) -> None:
    for place in ("attempts", "staged"):
        names = [path.name for path in (case.folder / "state" / place).glob("*")]
        case.losses += [f"sweep left {place}/{name}" for name in names]
    sink = case.folder / "sink"
    documents = {path: json.loads(path.read_text()) for path in sink.glob("*/*/*.json") if path.parts[-3] != "changes"}
    wanted = {path.parent / asset["href"] for path, item in documents.items() for asset in item["assets"].values()}
    wanted |= {*documents, *sink.glob("*.json"), *sink.glob("*/collection.json"), *sink.glob("schemas/*")}
    wanted |= {sink / ".lock", sink / "report.html", *sink.glob("changes/*/*.jsonl")}
    files = {path for path in sink.rglob("*") if path.is_file()}
    normal = {Path(os.path.normpath(path)) for path in wanted}
    case.losses += [f"sweep left {path.relative_to(sink)}" for path in sorted(files - normal)]


_PRELOADED = [
    *(
        f"pancrafter.{name}"
        for name in [
            "census",
            "sweep",
            "steps",
            "engine",
            "cube",
            "cog",
            "store",
            "publish",
            "item",
            "assess",
            "preview",
        ]
    ),
    *(
        f"pancrafter.{name}"
        for name in ["serve", "catalog", "resample", "compute", "summary", "classical", "metrics", "alignment"]
    ),
    *["torch", "pystac_client", "uvicorn", "jsonschema"],
]

# --- the campaign ---------------------------------------------------------------------------------------------------


def campaign(
    runs: int,
    seed: int,
    folder: Path,
    *,
    only: Orchestration | None = None,
    quality: Quality | None = None,
    first: int = 1,
    seconds: float | None = None,
) -> list[Case]:
    """Play all runs, say what each one did, and keep the folders of those that lost something."""
    started = time.monotonic()
    for name in _PRELOADED:  # copies of this process then need not load them
        importlib.import_module(name)
    print("preparing an archive and undisturbed runs", flush=True)
    archive = prepare(folder / "archive", [quality] if quality else list(QUALITIES))
    cases = []
    ready = time.monotonic()
    for number in range(first, first + runs):
        if seconds is not None and len(cases) >= LEAST_RUNS and time.monotonic() - ready > seconds:
            print(f"stopped after {seconds:g} s", flush=True)
            break
        case = draw(number, seed, folder, only=only, quality=quality)
        print(f"[{time.monotonic() - started:6.0f} s] {number}/{runs} ", end="", flush=True)
        cases.append(play(case, archive))
        verdict = "LOST" if case.losses else "ok"
        print(f"{verdict} {case} ({case.seconds:.1f} s, {case.polls} looks)", flush=True)
        for loss in case.losses:
            print(f"    {loss}", flush=True)
        if not case.losses:
            shutil.rmtree(case.folder)
    return cases


def summary(cases: list[Case], seed: int) -> str:
    """The last line: how many runs, how many were really hit, and what was lost."""
    hit = [case for case in cases if case.killed]
    lost = [case for case in cases if case.losses]
    kinds = Counter(case.orchestration for case in hit)
    kinds_text = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    points = len({case.fault.point for case in hit if case.fault.point})
    return (
        f"faults: {len(cases)} runs (seed {seed}), {len(hit)} killed "
        f"({kinds_text}; {points} of {len(POINTS)} kill points), "
        f"{sum(case.polls for case in cases)} looks by a reader, {len(lost)} runs with a loss, "
        f"{sum(len(case.losses) for case in cases)} losses"
    )
