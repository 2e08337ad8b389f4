"""``python -m infra.stack up``: every server of a real deployment, private to one folder, without Docker.

PostgreSQL with PostGIS (pgstac, Prefect's database, the ledger), stac-fastapi-pgstac with Transactions, an S3 server
(Ceph's gateway), a Prefect server with a process worker and the project's deployments, a Dask scheduler with two
workers of which one declares a GPU, and ``pancrafter serve`` on an archive. All listen on free ports of 127.0.0.1.
A server that dies is started again, as an init system or Kubernetes would.

Who ends it: Ctrl-C, SIGTERM, ``python -m infra.stack down``, or the death of its parent. The stopping is done by a
janitor process that notices the end of this one, however it came (kill -9 too), so that nothing stays behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from infra import rgw
from pancrafter.heap import WORKER_PRELOAD
from pancrafter.ports import HOST, free_port

PROJECT = Path(__file__).resolve().parents[1]
ARCHIVE = PROJECT / "archive-sound"
"""What a stack serves unless told otherwise: the sample archive without the file that `make run` meets damaged."""

PREFIX = "pancrafter-stack-"
MARK = "STACK_FOLDER"
"""Environment variable that every process of a stack inherits: the folder it belongs to."""

DEBIAN_PACKAGES = ("postgresql-postgis", "postgresql-postgis-scripts", *rgw.DEBIAN_PACKAGES)
START_LIMIT_S = 300.0
STOP_LIMIT_S = 20.0
MOST_RESTARTS = 20
"""Deaths of one server within ``RESTARTS_WITHIN_S`` after which the stack gives up."""

RESTARTS_WITHIN_S = 600.0

BUCKET = "pancrafter"
POOL = "pancrafter"


class StackError(Exception):
    """A server is missing or did not start; the message says which, and what to do."""


# --- Debian's packages ------------------------------------------------------------------------------------------------


def postgres_programs() -> Path | None:
    """Folder of the newest PostgreSQL that has PostGIS."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True)
    for program in found:
        if Path(f"/usr/share/postgresql/{program.parts[-3]}/extension/postgis.control").exists():
            return program.parent
    return None


def missing() -> str:
    """What stands between this machine and a stack, with the remedy; '' when nothing does."""
    try:
        import psycopg  # noqa: F401
        import pypgstac  # noqa: F401
        import stac_fastapi.pgstac  # noqa: F401
    except ImportError as err:
        return f"Python package {err.name} is missing: run `make services`"
    absent = _absent_servers()
    remedy = f"run `apt-get install {' '.join(DEBIAN_PACKAGES)}`"
    return f"{' and '.join(absent)} missing: {remedy}" if absent else ""


def _absent_servers() -> list[str]:
    found = {"PostgreSQL with PostGIS": postgres_programs(), "Ceph's S3 gateway": rgw.is_installed()}
    return [name for name, there in found.items() if not there]


def install() -> None:
    """Install the missing Debian packages as root.

    Raises:
        StackError: They are missing and cannot be installed from here.
    """
    if not _absent_servers():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise StackError(missing() + " (as root, on Debian or Ubuntu)")
    options = ["-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300", "--quiet", "--yes"]
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--no-install-recommends", *DEBIAN_PACKAGES]):
        done = subprocess.run(["apt-get", *options, *command], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StackError(f"apt-get {command[0]} failed: {done.stderr.strip()[-500:]}")
    if _absent_servers():
        raise StackError(f"after installing {' '.join(DEBIAN_PACKAGES)}: {missing()}")


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Server:
    """How a process is started."""

    command: Sequence[str]
    user: str | None
    environment: dict[str, str]


class Family:
    """The processes of one stack, their logs, and the janitor that ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {MARK: str(folder)}
        self.members: dict[str, subprocess.Popen[bytes]] = {}
        self.passing: set[subprocess.Popen[bytes]] = set()
        self.deaths: dict[str, list[float]] = {}
        self._servers: dict[str, _Server] = {}
        self.janitor = subprocess.Popen(
            [sys.executable, "-m", "infra.stack", "janitor", str(folder)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is not for the janitor
        )

    def start(self, name: str, command: Sequence[str], *, user: str | None = None, **environment: str) -> None:
        """Start a server as its own session; its output is in ``<folder>/<name>.log``, its number in ``<name>.pid``."""
        self._servers[name] = _Server(command, user, self.environment | environment)
        self._start(name)

    def _start(self, name: str) -> None:
        self.members[name] = self._spawn(name, self._servers[name])
        (self.folder / f"{name}.pid").write_text(str(self.members[name].pid))

    def run(self, name: str, command: Sequence[str], *, user: str | None = None) -> None:
        """Run a command of the set-up to its end.

        Raises:
            StackError: It failed.
        """
        process = self._spawn(name, _Server(command, user, self.environment))
        self.passing.add(process)
        try:
            code = process.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise StackError(f"{name} took over {START_LIMIT_S:.0f} s: {self.tail(name)}") from None
        if code != 0:
            raise StackError(f"{name} failed with status {code}: {self.tail(name)}")

    def _spawn(self, name: str, server: _Server) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                server.command,
                cwd=PROJECT if server.user is None else "/",
                env=server.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=server.user,
                group=server.user,
                extra_groups=None if server.user is None else [],
                start_new_session=True,
            )
        assert self.janitor.stdin is not None
        self.janitor.stdin.write(f"{process.pid}\n".encode())
        self.janitor.stdin.flush()
        return process

    def wait(self, name: str, healthy: Callable[[], bool]) -> None:
        """Wait until a server answers.

        Raises:
            StackError: It ended, or does not answer in time.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while not healthy():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{name} does not answer after {START_LIMIT_S:.0f} s: {self.tail(name)}")
            time.sleep(0.1)

    def check(self) -> None:
        """All servers are alive.

        Raises:
            StackError: One is not.
        """
        for name, process in list(self.members.items()):
            if process.poll() is not None:
                raise StackError(f"{name} ended with status {process.returncode}: {self.tail(name)}")

    def mend(self) -> None:
        """Start servers again that have ended.

        Raises:
            StackError: One ends again and again.
        """
        for name, process in self.members.items():
            if process.poll() is None:
                continue
            now = time.monotonic()
            recent = [when for when in self.deaths.get(name, []) if now - when < RESTARTS_WITHIN_S]
            self.deaths[name] = [*recent, now]
            print(f"# {name} ended with status {process.returncode} and is started again", flush=True)
            if len(self.deaths[name]) > MOST_RESTARTS:
                raise StackError(f"{name} ended {len(self.deaths[name])} times: {self.tail(name)}")
            self._start(name)

    def tail(self, name: str) -> str:
        """The end of a server's log."""
        return (self.folder / f"{name}.log").read_text(errors="replace").strip()[-1500:]

    def end(self) -> None:
        """Let the janitor do its work, and wait for it."""
        assert self.janitor.stdin is not None
        self.janitor.stdin.close()
        while self.janitor.poll() is None:
            for process in (*self.members.values(), *self.passing):
                process.poll()  # or it stays a zombie, and the janitor waits for it
            time.sleep(0.1)


def janitor(folder: Path) -> None:
    """Wait for the end of the stack's main process, then end its servers and remove the folder."""
    servers = [int(line) for line in sys.stdin]  # ends when the other side is closed, by whatever kind of death
    for _ in range(2):  # a second look: something may have been born during the first
        family = _family(folder, servers)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                # PostgreSQL waits for its clients on SIGTERM; its data is thrown away, so it need not.
                process.send_signal(signal.SIGQUIT if process.name() == "postgres" else signal.SIGTERM)
        _, alive = psutil.wait_procs(family, STOP_LIMIT_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, STOP_LIMIT_S)
    shutil.rmtree(folder, ignore_errors=True)


def _family(folder: Path, servers: Sequence[int]) -> list[psutil.Process]:
    """Servers, their descendants, and whatever else carries the stack's mark."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.pid in servers and process.ppid() in {1, os.getppid()}  # and no later user of the number
            if ours or process.environ().get(MARK) == str(folder):
                found |= {process, *process.children(recursive=True)}
    found.discard(psutil.Process())
    return list(found)


def _answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 (always http on this machine)
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    return ask


# --- servers ----------------------------------------------------------------------------------------------------------


class Stack:
    """The servers of one folder. ``urls`` grows as they come up: names are those of the environment variables."""

    def __init__(self, family: Family, archive: Path) -> None:
        self.family = family
        self.archive = archive
        self.urls: dict[str, str] = {}
        self._password = secrets.token_hex(16)

    def start(self, *, storage_only: bool = False) -> None:
        """Start all servers, or only S3, PostgreSQL and the STAC API, and wait until each one works.

        Raises:
            StackError: One did not start.
        """
        address = self._name_s3()
        with ThreadPoolExecutor(1) as aside:  # Ceph's set-up is a dozen small steps
            s3 = aside.submit(rgw.start, self.family, **address)
            if not storage_only:
                self._start_dask()
                self._start_archive()
            self._start_postgres()
            if not storage_only:
                self._start_prefect()
            self._start_stac_api()
            s3.result()
        self._make_bucket()
        if not storage_only:
            self._deploy()

    def start_catalog(self) -> None:
        """Start PostgreSQL and the STAC API alone.

        Raises:
            StackError: One did not start.
        """
        self._start_postgres()
        self._start_stac_api()

    def _python(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", *arguments]

    def _name_s3(self) -> dict[str, Any]:
        """Address and keys of the S3 server, for the environment of all others; the server is not started yet."""
        port, access_key, secret_key = free_port(), "stack", secrets.token_hex(16)
        self.urls |= {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            # the same for GDAL
            "AWS_S3_ENDPOINT": f"{HOST}:{port}",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
        self.family.environment |= self.urls
        keys = {"access_key": access_key, "secret_key": secret_key}
        return {"host": HOST, "port": port, "mon_port": free_port(), **keys}

    def _start_dask(self) -> None:
        port = free_port()
        address = f"tcp://{HOST}:{port}"
        scheduler = self._python("dask", "scheduler", "--host", HOST, "--port", str(port))
        self.family.start("dask-scheduler", [*scheduler, "--dashboard-address", f"{HOST}:0"])
        for name, resources in (("dask-worker-gpu", ["--resources", "GPU=1"]), ("dask-worker-cpu", [])):
            worker = self._python("dask", "worker", address, "--host", HOST, "--nthreads", "1", "--name", name)
            worker += ["--preload", WORKER_PRELOAD]
            place = ["--local-directory", str(self.family.folder), "--dashboard-address", f"{HOST}:0"]
            self.family.start(name, [*worker, *place, *resources])
        self.urls["PANCRAFTER_DASK_SCHEDULER"] = address

    def _start_archive(self) -> None:
        port = free_port()
        self.family.start("archive", self._python("pancrafter.cli", "serve", str(self.archive), "--port", str(port)))
        self.urls["PANCRAFTER_SOURCE"] = f"http://{HOST}:{port}"

    def _start_postgres(self) -> None:
        programs = postgres_programs()
        assert programs is not None
        user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        home = self.family.folder / "postgres"
        home.mkdir(mode=0o700)
        secret = home / "password"
        secret.write_text(self._password)
        if user is not None:
            owner = pwd.getpwnam(user)
            for path in (home, secret):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        data = home / "data"
        made = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--no-locale"]
        self.family.run("initdb", [str(programs / "initdb"), "-D", str(data), "--no-sync", *made], user=user)
        port = free_port()
        options = {
            "listen_addresses": HOST,
            "port": port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",  # the data goes with the stack
        }
        set_options = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.family.start("postgres", [str(programs / "postgres"), "-D", str(data), *set_options], user=user)
        self.family.environment |= {"PGHOST": HOST, "PGPORT": str(port), "PGUSER": "postgres"}
        self.family.environment |= {"PGPASSWORD": self._password, "PGDATABASE": "stac"}
        self._make_databases(port)
        self.urls["PANCRAFTER_LEDGER_URL"] = self._database_url("postgresql+psycopg", port, "ledger")
        self.urls["PREFECT_DATABASE"] = self._database_url("postgresql+asyncpg", port, "prefect")

    def _database_url(self, driver: str, port: int, database: str) -> str:
        return f"{driver}://postgres:{self._password}@{HOST}:{port}/{database}"

    def _make_databases(self, port: int) -> None:
        import psycopg

        def ready() -> bool:
            try:
                psycopg.connect(self._database_url("postgresql", port, "postgres"), connect_timeout=10).close()
            except psycopg.OperationalError:
                return False
            return True

        self.family.wait("postgres", ready)
        with psycopg.connect(self._database_url("postgresql", port, "postgres"), autocommit=True) as connection:
            for name in ("stac", "prefect", "ledger"):
                connection.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(self._database_url("postgresql", port, "stac"), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION postgis")

    def _start_prefect(self) -> None:
        port = free_port()
        home = self.family.folder / "prefect"
        home.mkdir()
        self.urls["PREFECT_API_URL"] = f"http://{HOST}:{port}/api"
        self.family.environment |= {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.urls["PREFECT_API_URL"],
            "PREFECT_API_DATABASE_CONNECTION_URL": self.urls.pop("PREFECT_DATABASE"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            # in memory, slots of limits would stay taken when the server is killed
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        self.family.start("prefect", self._python("prefect", "server", "start", "--host", HOST, "--port", str(port)))

    def _start_stac_api(self) -> None:
        """Prefect migrates its database meanwhile."""
        self.family.run("pgstac-migrate", self._python("pypgstac.pypgstac", "migrate"))
        import psycopg

        environment = self.family.environment
        with psycopg.connect(
            host=HOST, port=environment["PGPORT"], user="postgres", password=self._password, dbname="stac"
        ) as connection:
            connection.execute("UPDATE pgstac.pgstac_settings SET value = 'on' WHERE name = 'context'")
        port = free_port()
        command = self._python("uvicorn", "stac_fastapi.pgstac.app:create_app", "--factory")
        self.family.start(
            "stac-api",
            [*command, "--host", HOST, "--port", str(port), "--log-level", "warning"],
            ENABLE_TRANSACTIONS_EXTENSIONS="TRUE",
        )
        self.urls["PANCRAFTER_CATALOG_URL"] = f"http://{HOST}:{port}"
        self.family.wait("stac-api", _answers(f"{self.urls['PANCRAFTER_CATALOG_URL']}/_mgmt/ping"))

    def _make_bucket(self) -> None:
        import s3fs

        endpoint, names = self.urls["AWS_ENDPOINT_URL"], ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        self.family.wait("s3", _answers(endpoint))
        key, secret = (self.urls[name] for name in names)
        s3fs.S3FileSystem(endpoint_url=endpoint, key=key, secret=secret).mkdir(BUCKET)
        self.urls["PANCRAFTER_SINK"] = f"s3://{BUCKET}/sharpened"
        self.urls["PANCRAFTER_STATE_DIR"] = str(self.family.folder / "state")

    def _deploy(self) -> None:
        self.family.wait("prefect", _answers(f"{self.urls['PREFECT_API_URL']}/health"))
        self.family.environment |= self.urls | {"PANCRAFTER_HOME": str(PROJECT)}
        self.family.run("deploy", self._python("flows.deploy"))
        self.family.start("prefect-worker", self._python("prefect", "worker", "start", "--pool", POOL))
        self.family.wait("archive", _answers(self.urls["PANCRAFTER_SOURCE"]))
        self.family.wait("dask workers", self._dask_is_complete)

    def _dask_is_complete(self) -> bool:
        from distributed import Client

        try:
            with Client(self.urls["PANCRAFTER_DASK_SCHEDULER"], timeout=10, set_as_default=False) as client:
                return len(client.scheduler_info(n_workers=-1)["workers"]) == 2
        except OSError:
            return False


# --- commands ---------------------------------------------------------------------------------------------------------


class _Ended(Exception):  # noqa: N818 (not an error)
    """Somebody asked the stack to end."""


def up(archive: Path, *, storage_only: bool = False) -> int:
    """Start everything, print ``NAME=URL`` lines and ``# ready``, and stay until something ends it."""
    parent = os.getppid()
    install()
    if reason := missing():
        raise StackError(reason)
    if not storage_only and not (archive / "catalog.json").exists():
        from pancrafter.simulate.archive import simulate_archive, sound_scenes

        simulate_archive(archive, scenes=sound_scenes())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.chmod(0o711)  # PostgreSQL's own user passes through
    (folder / "stack.json").write_text(json.dumps({"pid": os.getpid(), "project": str(PROJECT)}))
    family = Family(folder)
    try:
        stack = Stack(family, archive)
        stack.start(storage_only=storage_only)
        lines = "".join(f"{name}={value}\n" for name, value in stack.urls.items())
        (folder / "stack.env").touch(mode=0o600)
        (folder / "stack.env").write_text(lines)
        print(f"{lines}# ready; set -a; . {folder}/stack.env; set +a", flush=True)
        while os.getppid() == parent:
            family.mend()
            time.sleep(0.5)
    except _Ended:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # the end has begun already
        family.end()
    return 0


def _end(_number: int, _frame: FrameType | None) -> None:
    raise _Ended


def down() -> int:
    """End the stacks that were started from this project folder, and wait for it."""
    for folder, pid in _running():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 5 * STOP_LIMIT_S
        while folder.exists():
            if time.monotonic() > deadline:
                raise StackError(f"the stack in {folder} (process {pid}) does not end")
            time.sleep(0.2)
        print(f"ended the stack in {folder}")
    return 0


def _running() -> Iterator[tuple[Path, int]]:
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/stack.json"):
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            about = json.loads(path.read_text())
            command = psutil.Process(about["pid"]).cmdline()
            if about["project"] == str(PROJECT) and "infra.stack" in command:
                yield path.parent, about["pid"]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start and stay")
    start.add_argument("--archive", type=Path, default=ARCHIVE, help="catalog folder; made if missing")
    start.add_argument("--storage-only", action="store_true", help="S3, PostgreSQL and the STAC API alone")
    commands.add_parser("down", help="end the stacks of this project folder")
    commands.add_parser("install", help="install Debian's packages (root)")
    commands.add_parser("janitor").add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "up":
            return up(options.archive, storage_only=options.storage_only)
        if options.command == "down":
            return down()
        if options.command == "install":
            install()
        else:
            janitor(options.folder)
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
