"""One seeded campaign: run, kill, recover, compare. ``make faults RUNS=200 SEED=1``; ``python -m faults --help``.

Every run draws how it is orchestrated, how its scenes are sharpened, which process dies, and where. The same seed draws
the same runs; where a kill at a time (and not at a named point) hits is up to the machine. Where the servers of
``infra.stack`` are not installed, runs that would work on them are commands in one process instead.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from networks import random_network
from small_archive import add_scene, classical_contracts

from faults import places, reader
from faults.deployment import DeploymentRun, PrefectServer, is_engine, is_worker
from faults.places import Place
from faults.processes import MARK, Started, asked, family, fork, kill, left_behind, spawn
from faults.servers import SERVERS, STORAGE, ServerStack
from infra import stack
from pancrafter import cli
from pancrafter.errors import PancrafterError
from pancrafter.killpoints import POINTS, VARIABLE
from pancrafter.ledger import Ledger
from pancrafter.model.weights import save_checkpoint
from pancrafter.ports import free_port
from pancrafter.states import SceneKey, State
from pancrafter.steps import store_name
from pancrafter.store import SceneStore

Orchestration = Literal["process", "pair", "local dask", "remote dask", "flow", "deployment", "stack"]
Quality = Literal["classical", "fallback", "network"]

SCENES = ("one", "two")
COLLECTION = "geoeye-1"
TIMEOUT_S = 900
RECOVERY_LOG = "recovery.log"
LEAST_RUNS = 3
"""Played even where the time that was allowed is over."""

ORCHESTRATIONS: dict[Orchestration, float] = {
    "process": 0.46, "pair": 0.14, "local dask": 0.1, "remote dask": 0.08, "flow": 0.06, "deployment": 0.07,
    "stack": 0.09,
}  # fmt: skip
"""How often each is drawn: those that start many processes take up to ten times as long."""

VICTIMS: dict[Orchestration, tuple[str, ...]] = {
    "process": ("run",),
    "pair": ("run",),
    "local dask": ("run", "Dask worker"),
    "remote dask": ("run", "Dask worker", "Dask nanny", "Dask scheduler"),
    "flow": ("run", "Prefect server"),
    "deployment": ("flow run", "Prefect worker", "Prefect server"),
    "stack": ("run", *STORAGE, *SERVERS, "Dask worker"),
}
"""What may be killed at a time; at a named point it is the process that passes it."""

AT_A_POINT: dict[Orchestration, float] = {"process": 0.8, "pair": 0.8, "stack": 0.25}
"""Share of kills at a named point; half of them for the others."""

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

    def settings(self, quality: Quality) -> dict[str, str]:
        """What makes scenes end like this."""
        return {
            "classical": {"contracts_dir": str(self.root / "contracts")},
            "fallback": {"weights": str(self.root / "random.safetensors")},
            "network": {},
        }[quality]

    def options(self, quality: Quality) -> list[str]:
        """The same for the command line."""
        chosen = {"source": str(self.source), **self.settings(quality)}
        return [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", value)]


@dataclass(frozen=True)
class Fault:
    """What is killed: the process that passes a point for the nth time, or a victim some time after staging began."""

    point: str | None
    nth: int = 1
    victim: str = ""
    after_share: float = 0.0
    """Share of an undisturbed run's time after which the victim dies; the clock starts when a scene is being staged."""
    pick: float = 0.0

    def __str__(self) -> str:
        return f"at {self.point}, time {self.nth}" if self.point else f"{self.victim} after {self.after_share:.0%}"


@dataclass
class Case:
    """One run of the campaign and everything that was lost in it."""

    number: int
    orchestration: Orchestration
    quality: Quality
    fault: Fault
    keep_staged: bool
    folder: Path
    place: Place
    losses: list[str] = field(default_factory=list)
    killed: str = ""
    """Which process."""
    seconds: float = 0.0
    polls: int = 0

    def __str__(self) -> str:
        killed = f"killed the {self.killed}" if self.killed else "finished before the kill"
        return f"{self.orchestration}, {self.quality}, kill {self.fault}: {killed}"


def prepare(root: Path, qualities: Sequence[Quality]) -> Archive:
    """Make the source, the weights, the contract, and an undisturbed run of each quality."""
    root.mkdir(parents=True)
    asked(lambda: _make_source(root), root)
    archive = Archive(root, {})
    for quality in qualities:
        folder = root / f"undisturbed-{quality}"
        case = Case(0, "process", quality, Fault(None), keep_staged=False, folder=folder, place=Place.of(folder))
        folder.mkdir()
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
    classical_contracts(root / "contracts")


_SECONDS: dict[Quality, float] = {}
"""How long an undisturbed run of each quality took here."""


def draw(
    number: int,
    seed: int,
    folder: Path,
    *,
    only: Orchestration | None = None,
    quality: Quality | None = None,
    servers: bool = True,
) -> Case:
    """The case with this number; the same for the same seed, whatever was drawn before.

    Without ``servers`` the runs on a stack are runs in one process.
    """
    rng = random.Random(f"{seed}/{number}")
    drawn = rng.choices(list(ORCHESTRATIONS), list(ORCHESTRATIONS.values()))[0]
    orchestration = only or (drawn if servers or drawn != "stack" else "process")
    drawn_quality = rng.choices(list(QUALITIES), list(QUALITIES.values()))[0]
    quality = quality or drawn_quality
    points = [p for p in POINTS if quality == "fallback" or not p.startswith("fallback")]
    if orchestration == "stack":  # its workers are there before the run
        points = [point for point in points if not point.startswith("block")]
    if rng.random() < AT_A_POINT.get(orchestration, 0.5):
        point = rng.choice(points)
        most = {"block-written": 8, "block-done": 8, "asset-put": 8, "found": 1}.get(point, len(SCENES))
        if orchestration in {"pair", "local dask"}:  # two processes share the work
            most = (most + 1) // 2
        fault = Fault(point, nth=rng.randint(1, most))
    else:
        victim = rng.choice(VICTIMS[orchestration])
        fault = Fault(None, victim=victim, after_share=rng.uniform(0, 0.9), pick=rng.random())
    own = folder / f"run-{number:04d}"
    return Case(number, orchestration, quality, fault, rng.random() < 0.3, own, Place.of(own))


def play(case: Case, archive: Archive) -> Case:
    """Run, kill, recover with the normal commands, and note every loss."""
    started = time.monotonic()
    case.folder.mkdir(parents=True)
    run_mark = str(case.folder)
    stop, report = case.folder / "stop", case.folder / "reader.json"
    if case.orchestration == "stack":
        case.place = _stack(archive).place(case.folder.name)
    place = case.place
    watcher = fork(
        lambda: reader.watch(place.sink, place.catalog_url, stop, report),
        case.folder / "reader.log",
        place.environment,
    )
    try:
        _disturb(case, archive, run_mark)
        before = {
            name: _Before(**was)
            for name, was in asked(lambda: _finished_blocks(case), case.folder, place.environment).items()
        }
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
    if not case.polls:
        case.losses.append("the reader never saw anything")
    _check_catalog(case, archive)
    _check_leftovers(case)
    case.seconds = time.monotonic() - started
    return case


# --- disturb and recover --------------------------------------------------------------------------------------------


def _places(case: Case) -> list[str]:
    return ["--sink", case.place.sink, "--state-dir", str(case.folder / "state")]


def _start_run(
    case: Case, archive: Archive, environment: dict[str, str], *, log: str = "run.log"
) -> Started | DeploymentRun:
    """The command that does the work, as its user would start it; a recovery needs no Dask."""
    recovers = log == RECOVERY_LOG
    settings = {
        MARK: str(case.folder),
        "PANCRAFTER_BLOCK_PX": "128",
        "PANCRAFTER_KEEP_STAGED": str(case.keep_staged).lower(),
        "PANCRAFTER_WORKERS": "2" if case.orchestration == "local dask" and not recovers else "0",
        "OMP_NUM_THREADS": "1",
        **case.place.environment,
    }
    options = archive.options(case.quality)
    if case.orchestration == "deployment":
        return _start_deployment(case, archive)
    if case.orchestration == "flow":
        settings |= {f"PANCRAFTER_{name.upper()}": value for name, value in archive.settings(case.quality).items()}
        command = [sys.executable, "-m", "flows", *_places(case), "--source", str(archive.source)]
        return spawn(command, case.folder / log, settings | environment)
    arguments = ["run", *options, *_places(case)]
    if case.orchestration in {"process", "pair"} or (recovers and case.orchestration != "flow"):
        return fork(lambda: cli.app(arguments), case.folder / log, settings | environment)
    command = [sys.executable, "-m", "pancrafter.cli", *arguments]
    return spawn(command, case.folder / log, settings | environment)


def _start_deployment(case: Case, archive: Archive) -> DeploymentRun:
    settings = {
        **archive.settings(case.quality),
        "source": str(archive.source),
        "sink": str(case.folder / "sink"),
        "state_dir": str(case.folder / "state"),
        "workers": 0,
        "block_px": 128,
        "keep_staged": case.keep_staged,
    }
    parameters = {"settings": settings, "lookback_days": None}
    return _server(archive).run("nightly/nightly", parameters, str(case.folder), case.folder / "worker.log")


_SERVERS: dict[Path, PrefectServer] = {}


_STACKS: dict[Path, ServerStack] = {}
_LONGER_ON_SERVERS: dict[Path, float] = {}
"""By how many seconds an undisturbed run on the stack took longer."""


def _stack(archive: Archive) -> ServerStack:
    """The stack of the campaign; it starts when a run needs it, and an undisturbed run goes first."""
    if archive.root not in _STACKS:
        started = _STACKS[archive.root] = ServerStack(archive.root / "stack", archive.source)
        folder = archive.root / "undisturbed-on-stack"
        folder.mkdir()
        place = started.place("undisturbed")
        case = Case(0, "stack", "classical", Fault(None), keep_staged=False, folder=folder, place=place)
        run = _start_run(case, archive, {"PANCRAFTER_DASK_SCHEDULER": started.scheduler})
        while not (folder / "state" / "staged").exists() and run.poll() is None:
            time.sleep(0.01)
        begun = time.monotonic()
        assert run.wait(TIMEOUT_S) == 0, (folder / "run.log").read_text()
        _LONGER_ON_SERVERS[archive.root] = max(0.0, time.monotonic() - begun - _SECONDS["classical"])
        assert _published(case) == archive.undisturbed["classical"]
        started.end_work()  # as after every run
    return _STACKS[archive.root]


def _server(archive: Archive) -> PrefectServer:
    """Prefect's server of the campaign; it starts when a run needs it."""
    if archive.root not in _SERVERS:
        _SERVERS[archive.root] = PrefectServer(archive.root / "prefect")
    return _SERVERS[archive.root]


@contextlib.contextmanager
def _infrastructure(case: Case, archive: Archive, fault: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """What an operator keeps running for such runs, and what the run needs to find it; it goes with the run.

    ``fault`` is the environment of all processes that may have to die at a named point.
    """
    if case.orchestration == "deployment":
        worker = _server(archive).worker(case.folder / "worker.log", {MARK: str(case.folder), **fault})
        with _ended([worker]):
            yield {}
    elif case.orchestration == "remote dask":
        port, log = free_port(), case.folder / "dask.log"
        dask = [sys.executable, "-m", "dask"]
        environment = {MARK: str(case.folder), "OMP_NUM_THREADS": "1"}
        scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"]
        worker_options = ["--nthreads", "1", "--nworkers", "1", "--resources", "GPU=1", "--no-dashboard"]
        address = f"tcp://127.0.0.1:{port}"
        parts = [
            spawn(scheduler, log, environment),
            spawn([*dask, "worker", address, *worker_options], log, {**environment, **fault}),
        ]
        with _ended(parts):
            yield {"PANCRAFTER_DASK_SCHEDULER": address, "PANCRAFTER_WORKER_WAIT_S": "20", **fault}
    elif case.orchestration == "stack":
        yield {"PANCRAFTER_DASK_SCHEDULER": _stack(archive).scheduler, **fault}
        _stack(archive).end_work()
        _stack(archive).wait()
    else:
        yield dict(fault)


@contextlib.contextmanager
def _ended(parts: Sequence[Started]) -> Iterator[None]:
    try:
        yield
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


def _disturb(case: Case, archive: Archive, run_mark: str) -> None:
    fault = _kill_environment(case)
    with _infrastructure(case, archive, fault) as environment:
        started = [_start_run(case, archive, environment)]
        if case.orchestration == "pair":
            started.append(_start_run(case, archive, environment, log="second.log"))
        if case.fault.point is None:
            case.killed = _kill_after(case, archive, started, run_mark)
        for process in started:
            process.wait(TIMEOUT_S)
    if case.fault.point is not None and not (case.folder / "token").exists():
        case.killed = "process that passed"
    if case.orchestration in {"remote dask", "deployment"}:  # whose services are the operator's
        left_behind(run_mark, 30)
    else:
        case.losses += [f"left running after the kill: {name}" for name in left_behind(run_mark, 30)]


def _kill_after(case: Case, archive: Archive, started: Sequence[Started | DeploymentRun], run_mark: str) -> str:
    """``kill -9`` the victim at its time; says which it was, or '' if the run was over before."""

    def over() -> bool:
        return all(process.poll() is not None for process in started)

    staged = case.folder / "state" / "staged"
    while not staged.exists() and not over():
        time.sleep(0.01)
    whole = _SECONDS[case.quality] + (_LONGER_ON_SERVERS[archive.root] if case.orchestration == "stack" else 0)
    deadline = time.monotonic() + case.fault.after_share * whole
    while time.monotonic() < deadline and not over():
        time.sleep(0.01)
    candidates = sorted(_victims(case, archive, started, run_mark), key=lambda process: process.pid)
    if not candidates or over():
        return ""
    return case.fault.victim if kill(candidates[int(case.fault.pick * len(candidates))]) else ""


def _victims(
    case: Case, archive: Archive, started: Sequence[Started | DeploymentRun], run_mark: str
) -> Iterator[psutil.Process]:
    """Living processes that play the victim's part."""
    if case.fault.victim == "run":
        pids = [run.pid for run in started if isinstance(run, Started) and run.poll() is None]
    elif case.orchestration == "stack":
        pids = _stack(archive).pids(case.fault.victim)
    elif case.fault.victim == "Prefect server" and case.orchestration == "deployment":
        server = _server(archive).living
        pids = [] if server is None else [server.pid]
    else:
        pids = [process.pid for process in family(run_mark) if _plays(case.fault.victim, process)]
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


_PARTS: dict[str, Callable[[Sequence[str]], bool]] = {
    "Dask worker": lambda words: any("spawn_main" in word for word in words),
    "Dask nanny": lambda words: "worker" in words,
    "Dask scheduler": lambda words: "scheduler" in words,
    "Prefect server": lambda words: "server" in words and "start" in words,
}


def _plays(part: str, process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        if part == "Prefect worker":
            return is_worker(process)
        return is_engine(process) if part == "flow run" else _PARTS[part](process.cmdline())
    return False


def _recover(case: Case, archive: Archive, run_mark: str) -> int:
    """What an operator does after a bad night: run again, and give what pauses or was given up another try."""
    for attempt in range(1, 4):
        with _infrastructure(case, archive, {}) if case.orchestration == "deployment" else contextlib.nullcontext():
            status = _start_run(case, archive, {}, log=RECOVERY_LOG).wait(TIMEOUT_S)
        case.losses += [f"left running after recovery: {name}" for name in left_behind(run_mark, 30)]
        with _ledger(case) as ledger:
            counts = ledger.counts()
        if status == 0 and counts[State.CONFIRMED] == len(SCENES):
            return attempt
        _command(case, "redrive", "--state", "eligible", "--state", "dead", *_places(case))
    log = "worker.log" if case.orchestration == "deployment" else RECOVERY_LOG
    case.losses.append(f"not everything is done after {attempt} recoveries: {counts}; {_tail(case, log)}")
    return attempt


def _command(case: Case, *words: str) -> int:
    log = case.folder / "commands.log"
    environment = {"PANCRAFTER_KEEP_STAGED": "false", **case.place.environment}
    return fork(lambda: cli.app(list(words)), log, environment).wait(TIMEOUT_S)


def _tail(case: Case, log: str = "commands.log") -> str:
    return (case.folder / log).read_text()[-1500:]


# --- what must hold -------------------------------------------------------------------------------------------------


def _ledger(case: Case) -> Ledger:
    return Ledger(case.place.ledger)


def _key(case: Case, scene: str) -> SceneKey:
    return SceneKey(sink=case.place.sink, collection=COLLECTION, item_id=scene)


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
    if not (case.folder / "state").exists():  # it died before it opened its ledger
        return found
    with _ledger(case) as ledger:
        rows = ledger.rows()
    for row in rows:
        path = case.folder / "state" / "staged" / store_name(row.output_item_id or "", case.place.sink)
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
    """Output item id -> sha256 of the sharpened image, as the catalog has it."""
    place = case.place
    return dict(asked(lambda: places.published(place.sink), case.folder, place.environment))


def _check_catalog(case: Case, archive: Archive) -> None:
    expected, place = archive.undisturbed[case.quality], case.place
    looks: dict[str, Callable[[], Any]] = {"catalog": lambda: places.published(place.sink)}
    if (address := place.catalog_url) is not None:
        looks["STAC API"] = lambda: places.published_in_api(place.sink, address)
    for where, look in looks.items():
        try:
            found = dict(asked(look, case.folder, place.environment))
        except Exception as err:  # noqa: BLE001 - whatever a reader stumbles over is a loss
            case.losses.append(f"the {where} cannot be read: {type(err).__name__}: {err}")
            return
        if found != expected:
            case.losses.append(f"published in the {where}: {found}, by an undisturbed run {expected}")
    announced = Counter(asked(lambda: places.announced(place.sink), case.folder, place.environment))
    if announced != dict.fromkeys(expected, 1):
        case.losses.append(f"announced {dict(announced)}, each item once was expected")
    with _ledger(case) as ledger:
        for scene in SCENES:
            confirmed = [event for event in ledger.why(_key(case, scene)) if event.after is State.CONFIRMED]
            if len(confirmed) != 1:
                case.losses.append(f"{scene} was published {len(confirmed)} times")


def _check_leftovers(case: Case) -> None:
    for kind in ("attempts", "staged"):
        names = [path.name for path in (case.folder / "state" / kind).glob("*")]
        case.losses += [f"sweep left {kind}/{name}" for name in names]
    place = case.place
    unreferenced = asked(lambda: places.unreferenced(place.sink), case.folder, place.environment)
    case.losses += [f"sweep left {name}" for name in unreferenced]


_PRELOADED = (
    *["torch", "pystac_client", "s3fs", "uvicorn", "jsonschema"],
    *(f"pancrafter.{name}" for name in ["alignment", "assess", "catalog", "census", "classical", "cog", "compute"]),
    *(f"pancrafter.{name}" for name in ["cube", "engine", "item", "metrics", "preview", "publish", "resample"]),
    *(f"pancrafter.{name}" for name in ["serve", "steps", "store", "summary", "sweep"]),
)


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
    results: Path | None = None,
) -> list[Result]:
    """Play all runs, say what each one did, and keep the folders of those that lost something.

    Runs that ``results`` holds from an earlier campaign with the same seed are not played again.
    """
    started = time.monotonic()
    for name in _PRELOADED:  # copies of this process then need not load them
        importlib.import_module(name)
    print("preparing an archive and undisturbed runs", flush=True)
    archive = prepare(folder / "archive", [quality] if quality else list(QUALITIES))
    servers = not stack.missing()
    played = {result.number: result for result in read_results(results, seed)}
    ready = time.monotonic()
    try:
        for number in range(first, first + runs):
            if number in played:
                continue
            if seconds is not None and len(played) >= LEAST_RUNS and time.monotonic() - ready > seconds:
                print(f"stopped after {seconds:g} s", flush=True)
                break
            case = draw(number, seed, folder, only=only, quality=quality, servers=servers)
            print(f"[{time.monotonic() - started:6.0f} s] {number}/{runs} ", end="", flush=True)
            played[number] = _played(play(case, archive), seed, results)
    finally:
        for server in (*_SERVERS.values(), *_STACKS.values()):
            server.end()
    return [played[number] for number in sorted(played)]


@dataclass(frozen=True)
class Result:
    """What a campaign keeps of a run."""

    seed: int
    number: int
    orchestration: str
    quality: str
    point: str | None
    killed: str
    polls: int
    seconds: float
    losses: list[str]


def read_results(path: Path | None, seed: int) -> list[Result]:
    """Runs of earlier campaigns with this seed, one JSON line each."""
    if path is None or not path.exists():
        return []
    results = [Result(**json.loads(line)) for line in path.read_text().splitlines()]
    return [result for result in results if result.seed == seed]


def _played(case: Case, seed: int, results: Path | None) -> Result:
    verdict = "LOST" if case.losses else "ok"
    print(f"{verdict} {case} ({case.seconds:.1f} s, {case.polls} looks)", flush=True)
    for loss in case.losses:
        print(f"    {loss}", flush=True)
    if not case.losses:
        shutil.rmtree(case.folder)
    fault, seconds = case.fault, round(case.seconds, 1)
    result = Result(
        seed, case.number, case.orchestration, case.quality, fault.point, case.killed, case.polls, seconds, case.losses
    )
    if results is not None:
        with results.open("a") as file:
            file.write(f"{json.dumps(asdict(result))}\n")
    return result


def summary(results: Sequence[Result], seed: int) -> str:
    """A table of who died how often, and as the last line how many runs, how many were hit, and what was lost."""
    hit = [result for result in results if result.killed]
    lost = [result for result in results if result.losses]
    victims = Counter((result.orchestration, "at a named point" if result.point else result.killed) for result in hit)
    lines = [f"{kind}: {victim}: {count}" for (kind, victim), count in sorted(victims.items())]
    points = len({result.point for result in hit if result.point})
    last = (
        f"faults: {len(results)} runs (seed {seed}), {len(hit)} killed ({points} of {len(POINTS)} kill points), "
        f"{sum(result.polls for result in results)} looks by a reader, {len(lost)} runs with a loss, "
        f"{sum(len(result.losses) for result in results)} losses"
    )
    if absent := stack.missing():
        lines.append(f"runs on the servers of the stack were runs in one process: {absent}")
    return "\n".join([*lines, last])
