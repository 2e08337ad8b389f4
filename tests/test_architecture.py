"""Dependencies point one way, heavy libraries have one door, and importing does no work."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "pancrafter"
MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


MIGRATIONS = {"migrations/__init__.py", *(f"migrations/versions/v000{version}.py" for version in (2, 3))}

DOORS = {
    "zarr": {"store.py"},
    "xarray": {"store.py", "arrays.py"},
    "rioxarray": {"store.py", "arrays.py"},
    "pyproj": {"examine.py"},
    "distributed": {"compute.py"},
    "dask": {"cube.py", "in_place.py", "compute.py", "arrays.py"},
    "pystac_client": {"catalog.py", "catalog_reading.py"},
    "stac_fastapi": {"serve.py"},
    "httpx": {"stac_api.py"},
    "sqlalchemy": {"ledger.py", "ledger_tables.py", *MIGRATIONS},
    "simpy": {"sizing.py"},
    "prometheus_client": {"metrics_endpoint.py"},
    "alembic": MIGRATIONS,
    "rio_cogeo": {"cog.py"},
    "safetensors": {"model/weights.py"},
    "h5py": {"pancollection.py"},
    "tensorboardX": {"training/record.py"},
    "typer": {_name(path) for path in (PACKAGE / "cli").glob("*.py")},
}
"""Modules that may import a library; nobody else does."""

TORCH_USERS = {"adapt.py", "benchmark.py", "engine.py", "misalignment.py"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_library_never_imports_the_orchestrator(path: Path) -> None:
    assert not {name.split(".")[0] for name in _imports(path)} & {"prefect", "flows", "infra", "tests"}


@pytest.mark.parametrize("library", sorted(DOORS))
def test_heavy_library_has_one_door(library: str) -> None:
    users = {_name(path) for path in MODULES if library in {name.split(".")[0] for name in _imports(path)}}
    assert users <= DOORS[library]
    assert users, f"nobody imports {library}: drop it from the dependencies"


def test_torch_stays_in_model_engine_and_training() -> None:
    users = {_name(path) for path in MODULES if "torch" in {name.split(".")[0] for name in _imports(path)}}
    assert {user for user in users if not user.startswith(("model/", "training/"))} <= TORCH_USERS


KNOWN_TO = {
    "discovery": {"backup.py", "census.py", "plan.py", "runs.py", "steps.py", "sweep.py", "withdrawal.py"},
    "steps": {"backfill.py", "runs.py", "summary.py", "sweep.py"},
    "runs": {"backfill.py"},
    "withdrawal": set[str](),
}
"""Modules that may import those of the upper layers; commands and flows may too."""


@pytest.mark.parametrize("upper", KNOWN_TO)
def test_lower_layers_do_not_know_the_upper_ones(upper: str) -> None:
    below = [path for path in MODULES if path.parent.name != "cli" and _name(path) not in KNOWN_TO[upper]]
    assert [_name(path) for path in below if f"pancrafter.{upper}" in _imports(path)] == []


def test_only_commands_know_the_command_line() -> None:
    others = [path for path in [*MODULES, *(PROJECT / "flows").glob("*.py")] if path.parent.name != "cli"]
    assert [path.name for path in others if any(name.startswith("pancrafter.cli") for name in _imports(path))] == []


@pytest.mark.parametrize("module", ["pancrafter", "pancrafter.runs", "pancrafter.cli", "pancrafter.settings"])
def test_importing_the_top_loads_nothing_heavy(module: str) -> None:
    heavy = ["torch", "rasterio", "dask", "zarr", "prefect"]
    code = f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert found.stdout.strip() == ""
