"""Where tasks run: in this process, on a local Dask cluster, or on a Dask scheduler somewhere else."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pancrafter.errors import ClusterLostError, WorkerLostError
from pancrafter.heap import WORKER_PRELOAD
from pancrafter.settings import Settings

T = TypeVar("T")

GPU_RESOURCE = "GPU"
"""Workers that run the network declare this Dask resource: one per CUDA device, or one per CPU worker."""

LOST_WORKER_RETRIES = 3
"""How often Dask starts a task again elsewhere when its worker dies. Tasks are safe to repeat."""

_LOOK_EVERY_S = 2.0

_IGNORE_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Run by local workers when they start: Ctrl-C reaches them too, but it is this process that ends them."""


class Compute:
    """Maps functions over small arguments. Functions and arguments must be importable and picklable."""

    def __init__(
        self,
        client: Any = None,  # Any: distributed ships no types
        threads: int | None = None,
        *,
        priority: int = 0,
        patience_s: float = math.inf,
    ) -> None:
        """Work on ``client``, or in this process with ``threads`` threads (default: one per core).

        ``patience_s`` is how long calls wait while the client's cluster has no worker that could do them.
        """
        self._client = client
        self._threads = threads
        self._priority = priority
        self._patience_s = patience_s

    @property
    def description(self) -> str:
        """Where work is done, for logs."""
        if self._client is None:
            return "in this process"
        return f"on {len(self._client.scheduler_info(n_workers=-1)['workers'])} Dask workers"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Dask graphs computed inside run here.

        Raises:
            WorkerLostError: Workers died again and again.
            ClusterLostError: No worker is left, or the scheduler is gone.
        """
        if self._client is None:
            import dask
            from dask.threaded import get

            # by its name Dask would import distributed first, to see whether a cluster is meant
            with dask.config.set(scheduler=get, num_workers=self._threads):
                yield
        else:
            with self._client.as_current(), _losses_are_named(self._client, None, self._patience_s):
                yield

    def map(
        self, function: Callable[..., T], items: Iterable[Any], *arguments: Any, on_gpu: bool = False
    ) -> Iterator[T]:
        """``function(item, *arguments)`` for each item, in the order in which they finish.

        The first error is raised and what has not started is cancelled.

        Args:
            function: Runs on a worker.
            items: First argument of each call.
            arguments: Further arguments, the same for all calls.
            on_gpu: Run only on workers that declare a GPU, one call at a time on each.

        Raises:
            WorkerLostError: Workers died again and again.
            ClusterLostError: No worker that may do it is left, or the scheduler is gone.
        """
        if self._client is None:
            yield from (function(item, *arguments) for item in items)
            return
        from distributed import as_completed

        options = {"pure": False, "retries": LOST_WORKER_RETRIES, "resources": {GPU_RESOURCE: 1} if on_gpu else {}}
        options["priority"] = self._priority
        with _losses_are_named(self._client, GPU_RESOURCE if on_gpu else None, self._patience_s):
            futures = {self._client.submit(function, item, *arguments, **options) for item in items}
            try:
                for future in as_completed(list(futures), loop=self._client.loop):
                    result = future.result()
                    futures.discard(future)
                    future.release()  # or Dask computes it once more when the worker that holds it dies
                    yield result
            finally:
                self._client.cancel(list(futures))


def each(
    function: Callable[..., T], calls: Iterable[tuple[Any, ...]], *, scheduler: str | None = None
) -> tuple[T, ...]:
    """``function(*call)`` for each of ``calls``, in order, as one Dask graph.

    Runs where ``scheduler`` says, by default where ``Compute.active`` does.
    """
    from dask.base import compute
    from dask.delayed import delayed

    return tuple(compute(*(delayed(function)(*call) for call in calls), scheduler=scheduler))  # type: ignore[no-untyped-call]


def held_by_cluster(array: Any) -> bool:  # Any: a Dask array
    """Whether parts of it were persisted on a cluster: its graph has futures in their place."""
    if "distributed" not in sys.modules:
        return False
    from distributed.client import futures_of

    return bool(futures_of(array))


@contextlib.contextmanager
def _losses_are_named(client: Any, resource: str | None, patience_s: float) -> Iterator[None]:  # Any: as above
    """Tell the loss of workers, which one scene's blocks may have killed, from the loss of all that a run works on.

    Args:
        client: Of the cluster that is computed on inside.
        resource: What a worker must declare to do it; None: any worker can.
        patience_s: How long to wait for such a worker.

    Raises:
        WorkerLostError: Workers died again and again, or a scheduler that is back has forgotten what it was given.
        ClusterLostError: The scheduler is gone, or there was no such worker for too long.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.client import ClosedClientError
    from distributed.comm.core import CommClosedError

    try:
        with _not_waiting_in_vain(client, resource, patience_s) as given_up:
            yield
    except (KilledWorker, CommClosedError, ClosedClientError, TimeoutError, CancelledError) as err:
        again = "then run again: finished blocks are kept"
        if given_up.is_set():
            wanted = f"worker with the resource {resource}" if resource else "worker"
            option = f" with --resources {resource}=1" if resource else ""
            raise ClusterLostError(
                f"the Dask cluster had no {wanted} for {patience_s:g} s; start one{option}, {again}"
            ) from err
        while client.status == "connecting":  # until the scheduler is back, or the client gives up and closes
            time.sleep(0.1)
        if client.status != "running":
            raise ClusterLostError(
                f"the Dask scheduler was lost ({type(err).__name__}: {err}); look at its log and start it, {again}"
            ) from err
        raise WorkerLostError(
            f"a Dask worker or scheduler was lost ({type(err).__name__}: {err}); look at its memory limit and log, "
            f"{again}"
        ) from err


@contextlib.contextmanager
def _not_waiting_in_vain(client: Any, resource: str | None, patience_s: float) -> Iterator[threading.Event]:
    """Give up what waits when for so long no worker was there to do it: Dask itself waits for ever, and says nothing.

    A worker that starts again, or that an autoscaler brings, takes the work over until then.

    Yields:
        Set once it was given up.
    """
    from distributed import Future

    over, given_up = threading.Event(), threading.Event()

    def watch() -> None:
        since = time.monotonic()
        while not over.wait(_LOOK_EVERY_S):
            with contextlib.suppress(Exception):  # the loss of the scheduler is told to those who wait for results
                workers = client.scheduler_info(n_workers=-1)["workers"].values()
                if any(resource is None or worker["resources"].get(resource) for worker in workers):
                    since = time.monotonic()
                elif time.monotonic() - since > patience_s:
                    given_up.set()
                    client.cancel([Future(key, client) for key in list(client.futures)])

    thread = threading.Thread(target=watch, name="are there Dask workers", daemon=True)
    thread.start()
    try:
        yield given_up
    finally:
        over.set()


def _connected(scheduler: str) -> Any:  # Any: distributed ships no types
    """A client of a scheduler that answers: one that finds none tries for a minute more to take its leave."""
    from distributed import Client
    from distributed.comm.core import connect
    from distributed.security import Security
    from distributed.utils import LoopRunner, sync

    async def knock() -> None:
        comm = await connect(scheduler, **Security().get_connection_args("client"))
        await comm.close()

    own = LoopRunner()
    own.start()
    try:
        sync(own.loop, knock)
        return Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as err:
        raise ClusterLostError(
            f"Dask scheduler {scheduler}: {err}; expected tcp://host:port of one that runs; start it or correct the "
            "address, then run again"
        ) from err
    finally:
        own.stop()


@contextlib.contextmanager
def open_compute(settings: Settings) -> Iterator[Compute]:
    """The place that the settings name, opened and closed again.

    Raises:
        ClusterLostError: It is a Dask scheduler that does not answer.
    """
    if settings.dask_scheduler is None and settings.workers == 0:
        yield Compute()
        return
    import dask
    from distributed import Client, LocalCluster
    from distributed.gc import disable_gc_diagnosis

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors of tasks are raised, not only logged
    if settings.dask_scheduler is not None:
        with _connected(settings.dask_scheduler) as client:
            yield Compute(client, priority=settings.priority, patience_s=settings.worker_wait_s)
        return
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1}),
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            resources={GPU_RESOURCE: 1},
            dashboard_address="127.0.0.1:0",  # None would take port 8787, and warn where another run has it
            silence_logs=logging.CRITICAL,
            preload=(_IGNORE_INTERRUPTS, WORKER_PRELOAD),
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        disable_gc_diagnosis(force=True)  # Python drops errors in its callback, a KeyboardInterrupt too
        yield Compute(client, priority=settings.priority, patience_s=settings.worker_wait_s)
