"""What Prometheus may know: the state of the ledger and of the change feed, read anew at every scrape.

Nothing is counted in the workers: a run that is killed takes no numbers with it, and one endpoint speaks for all.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pancrafter.changes import ChangeFeed
from pancrafter.errors import LedgerError, PancrafterError
from pancrafter.ledger import Ledger
from pancrafter.publish import StaticSink
from pancrafter.settings import Settings
from pancrafter.states import IN_WORK, State, Total

DAY = timedelta(days=1)


class SinkMetrics(Collector):
    """The metrics of one output catalog. A place that cannot be read sets ``pancrafter_up`` to 0."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._confirmations, self._last_event = 0, 0
        self._totals: list[Total] = []
        self._summed: object = None
        """At which event, and with how many scenes in each state, the totals were summed."""
        self._counting = threading.Lock()

    def describe(self) -> Iterator[Metric]:
        """Nothing: asking would read the ledger before anybody scrapes."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        up = GaugeMetricFamily("pancrafter_up", "1 if ledger and catalog could be read.", labels=["place"])
        for place, read in (("ledger", self._ledger), ("catalog", self._feed)):
            try:
                yield from list(read())
            except PancrafterError:
                up.add_metric([place], 0)
            else:
                up.add_metric([place], 1)
        yield up

    def _ledger(self) -> Iterator[Metric]:
        sink = self._settings.sink
        if not self._settings.has_ledger:  # opening it would make one
            raise LedgerError(f"no ledger in {self._settings.state_dir}")
        with Ledger(self._settings.ledger) as ledger:
            counts, waiting = ledger.counts(sink), ledger.waiting(sink)
            with self._counting:
                if self._summed != (now := (ledger.last_event(), counts)):  # seconds in a large ledger
                    self._totals, self._summed = ledger.totals(sink), now
                totals = self._totals
                more, self._last_event = ledger.confirmations(sink, self._last_event)
                self._confirmations += more
                confirmations = self._confirmations
        scenes = GaugeMetricFamily("pancrafter_scenes", "Scenes of the ledger by state.", labels=["state"])
        for state, count in counts.items():
            scenes.add_metric([state.value], count)
        yield scenes
        failures = GaugeMetricFamily(
            "pancrafter_failures", "Scenes with an error class or refusal code.", labels=["state", "code"]
        )
        by_code: Counter[tuple[str, str]] = Counter()
        since: dict[State, datetime] = {}
        for entry in waiting:
            since[entry.state] = min(entry.since, since.get(entry.state, entry.since))
            if entry.code:
                by_code[entry.state.value, entry.code] += entry.scenes
        for labels, count in by_code.items():
            failures.add_metric(labels, count)
        yield failures
        yield _age(
            "pancrafter_oldest_claim_seconds",
            "Time since a claimed scene last moved, of the one that has stood still the longest.",
            [moment for state, moment in since.items() if state in IN_WORK],
        )
        yield _age(
            "pancrafter_oldest_eligible_seconds",
            "Time that the oldest scene has waited to be claimed.",
            [moment for state, moment in since.items() if state is State.ELIGIBLE],
        )
        yield CounterMetricFamily(
            "pancrafter_confirmations", "Times a scene was made and confirmed, up to a minute ago.", value=confirmations
        )
        names = ("scenes", "pixels", "bytes_read", "seconds", "sharpen_seconds")
        meanings = (
            "Scenes that are confirmed.",
            "PAN pixels sharpened for them.",
            "Bytes read from the source for them.",
            "Wall seconds from claim to confirmation for them.",
            "Seconds of the sharpening step for them: GPU time on a GPU.",
        )
        for name, meaning in zip(names, meanings, strict=True):
            family = GaugeMetricFamily(f"pancrafter_confirmed_{name}", meaning, labels=["sensor", "device"])
            for total in totals:
                family.add_metric([total.sensor, total.device], getattr(total, name))
            yield family

    def _feed(self) -> Iterator[Metric]:
        counts = ChangeFeed(StaticSink(self._settings.sink).store).counts(datetime.now(UTC) - DAY)
        family = GaugeMetricFamily("pancrafter_changes_last_day", "Events announced in 24 hours.", labels=["type"])
        for kind in ("new", "superseded", "withdrawn"):
            family.add_metric([kind], counts.get(kind, 0))
        yield family


def text(settings: Settings) -> str:
    """All metrics in Prometheus' text format."""
    return generate_latest(_registry(settings)).decode()


def serve(settings: Settings, host: str, port: int, on_start: Callable[[], None]) -> None:
    """Answer scrapes of ``http://host:port/metrics`` until the process ends; calls ``on_start`` when it does.

    Raises:
        OSError: The address cannot be listened on.
    """
    start_http_server(port, addr=host, registry=_registry(settings))
    on_start()
    while True:
        time.sleep(3600)


def _registry(settings: Settings) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(SinkMetrics(settings))
    return registry


def _age(name: str, meaning: str, moments: list[datetime]) -> Metric:
    """Seconds since the earliest moment; 0 without one."""
    age = (datetime.now(UTC) - min(moments)).total_seconds() if moments else 0.0
    return GaugeMetricFamily(name, meaning, value=max(0.0, age))
