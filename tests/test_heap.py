"""Processes keep the heap of feature maps, which threads with an arena of their own could not, and collect seldom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pancrafter.compute import open_compute
from pancrafter.heap import WORKER_PRELOAD
from pancrafter.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]
FEATURE_MAP_BYTES = 80 * 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")


def lies_on_the_heap(_: object = None) -> bool:
    """Whether a feature map made by this thread does; otherwise the kernel maps fresh pages for every one."""
    import numpy as np

    feature_map = np.ones(FEATURE_MAP_BYTES, np.uint8)
    address = feature_map.ctypes.data
    heap = (line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]"))
    limits = [[int(end, 16) for end in part.split("-")] for part in heap]
    return any(first <= address < last for first, last in limits)


def test_workers_of_a_local_cluster(tmp_path: Path) -> None:
    with open_compute(Settings(workers=1, state_dir=str(tmp_path))) as compute:
        assert next(compute.map(lies_on_the_heap, [0]))


def test_workers_that_preload_it(tmp_path: Path) -> None:
    """As ``dask worker --preload``, and as the images have it in their environment."""
    (tmp_path / "cluster.py").write_text(
        "from distributed import Client, LocalCluster\nfrom test_heap import lies_on_the_heap\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:\n"
        "        print(Client(cluster).submit(lies_on_the_heap).result())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT / "tests"), str(PROJECT)])}
    if sys.version_info >= (3, 12):  # a worker has one thread more before the preload
        environment |= {"MALLOC_ARENA_MAX": "1"}
    said = {}
    for preload in ("[]", json.dumps([WORKER_PRELOAD])):
        done = subprocess.run(
            [sys.executable, "cluster.py"],
            cwd=tmp_path,
            env=environment | {"DASK_DISTRIBUTED__WORKER__PRELOAD": preload},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        said[preload] = done.stdout.strip()
    assert said == {"[]": "False", json.dumps([WORKER_PRELOAD]): "True"}


def test_command_has_one_heap_and_collects_seldom_before_it_does_anything() -> None:
    script = (
        "import gc, threading\nimport pancrafter.cli as cli\nfrom test_heap import lies_on_the_heap\n"
        "found = []\n"
        "def app():\n    work = threading.Thread(target=lambda: found.append(lies_on_the_heap()))\n"
        "    work.start()\n    work.join()\n"
        "    found.append(gc.get_threshold()[0])\n"
        "cli.app = app\ncli.main()\nprint(found)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT / "tests"), str(PROJECT)])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, 5000]"


_COMMAND = "import pancrafter.cli as entry; entry.main()"
_MAKE_RUN = "import flows.__main__ as entry; entry.main(['--help'])"
_AT_THE_END = "atexit.register(lambda: print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'], file=sys.stderr))"


@pytest.mark.parametrize("chosen", [None, "7"])
@pytest.mark.parametrize("entry", [_COMMAND, _MAKE_RUN])
def test_threads_that_wait_leave_their_core_unless_the_user_has_chosen(entry: str, chosen: str | None) -> None:
    """libgomp looks at it when torch is imported."""
    code = f"import atexit, os, sys\nsys.argv[1:] = ['--help']\n{_AT_THE_END}\n{entry}"
    given = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment = given if chosen is None else given | {"GOMP_SPINCOUNT": chosen}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, check=True, capture_output=True, text=True, cwd=PROJECT, env=environment)
    assert done.stderr.splitlines()[-1] == f"False {chosen or 2000}"
