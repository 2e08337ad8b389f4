"""Where tasks run: in this process, on a local Dask cluster, or on a Dask scheduler somewhere else."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pancrafter.errors import WorkerLostError
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
    ) -> None:
        """Work on ``client``, or in this process with ``threads`` threads (default: one per core)."""
        self._client = client
        self._threads = threads
        self._priority = priority

    @property
    def description(self) -> str:
        """For logs and items."""
        if self._client is None:
            return "in process"
        return f"{len(self._client.scheduler_info(n_workers=-1)['workers'])} Dask workers"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Dask graphs computed inside run here."""
        if self._client is None:
            import dask
            from dask.threaded import get

            # by its name Dask would import distributed first, to see whether a cluster is meant
            with dask.config.set(scheduler=get, num_workers=self._threads):
                yield
        else:
            with self._client.as_current(), _losses_are_named():
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
            WorkerLostError: Workers died again and again, none is left, or the scheduler is gone.
        """
        if self._client is None:
            yield from (function(item, *arguments) for item in items)
            return
        from distributed import as_completed

        options = {"pure": False, "retries": LOST_WORKER_RETRIES, "resources": {GPU_RESOURCE: 1} if on_gpu else {}}
        options["priority"] = self._priority
        futures = {self._client.submit(function, item, *arguments, **options) for item in items}
        try:
            with _losses_are_named():
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


@contextlib.contextmanager
def _losses_are_named() -> Iterator[None]:
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        yield
    except (KilledWorker, CommClosedError, TimeoutError, CancelledError) as err:
        raise WorkerLostError(
            f"a Dask worker or scheduler was lost ({type(err).__name__}: {err}); look at its memory limit and log, and "
            f"whether workers with --resources {GPU_RESOURCE}=1 are there, then run again: finished blocks are kept"
        ) from err


@contextlib.contextmanager
def _not_waiting_in_vain(client: Any, patience_s: float) -> Iterator[None]:  # Any: distributed ships no types
    """Give up what waits when for so long no worker was there to do it: Dask itself waits for ever, and says nothing.

    A worker that starts again, or that an autoscaler brings, takes the work over until then.
    """
    from distributed import Future

    over = threading.Event()

    def watch() -> None:
        since = time.monotonic()
        while not over.wait(_LOOK_EVERY_S):
            with contextlib.suppress(Exception):  # the loss of the scheduler is told to those who wait for results
                workers = client.scheduler_info(n_workers=-1)["workers"].values()
                if any(worker["resources"].get(GPU_RESOURCE) for worker in workers):
                    since = time.monotonic()
                elif time.monotonic() - since > patience_s:
                    what = f"no worker with the resource {GPU_RESOURCE} for {patience_s:g} s"
                    client.cancel([Future(key, client) for key in list(client.futures)], reason=what)

    thread = threading.Thread(target=watch, name="are there Dask workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def open_compute(settings: Settings) -> Iterator[Compute]:
    """The place that the settings name, opened and closed again."""
    if settings.dask_scheduler is None and settings.workers == 0:
        yield Compute()
        return
    from distributed import Client, LocalCluster
    from distributed.gc import disable_gc_diagnosis

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors of tasks are raised, not only logged
    if settings.dask_scheduler is not None:
        with (
            Client(settings.dask_scheduler, set_as_default=False) as client,
            _not_waiting_in_vain(client, settings.worker_wait_s),
        ):
            yield Compute(client, priority=settings.priority)
        return
    with (
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
        yield Compute(client, priority=settings.priority)
