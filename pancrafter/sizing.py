"""How long, how much, and what breaks first: a discrete-event model of the pipeline, fed with rates that were measured.

Scenes go through staging, sharpening, assessment and publication as in ``pancrafter.steps``; they queue for what is
shared: CPU slots, GPUs, the source's bandwidth, the ledger, the STAC API. Spot GPUs disappear and come back. Large
fleets are simulated by a part of them with its share of everything, large archives by a sample whose pace goes on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pancrafter.errors import PancrafterError
from pancrafter.types import Record

if TYPE_CHECKING:
    import simpy

    Steps = Generator[simpy.Event, Any, None]

HOUR_S = 3600.0
LEDGER_WRITES_PER_SCENE = 8
"""Claim, six steps, read back; renewals of long scenes come on top."""
API_REQUESTS_PER_SCENE = 3
OBJECTS_PER_SCENE = 7
"""Five files, the item, the event of the change feed; pages of days are shared by many scenes."""
ROUNDS = 30
"""Scenes of every runner that are simulated at least, so that how they start together no longer shows."""
ALIKE = 2
"""Scenes of which the largest is less than this many times the smallest do not tell what any scene costs."""
OUTPUT_BYTES_PER_VALUE = 1.5
"""uint16 after ZSTD, with overviews."""


class SizingError(PancrafterError):
    """There are no rates to reckon with."""

    kind = "system"


class Rate(Record):
    """Seconds of one step: a part that every scene takes, and one that grows with its size."""

    fixed_s: float = Field(ge=0)
    s_per_mpx: float = Field(ge=0)

    def seconds(self, mpx: float) -> float:
        """For a scene of so many PAN megapixels."""
        return self.fixed_s + self.s_per_mpx * mpx


class Rates(Record):
    """What one slot does: one core for staging, assessment and publication, one device for sharpening."""

    stage: Rate
    sharpen: Rate
    assess: Rate
    publish: Rate
    read_bytes_per_mpx: float = Field(default=4e6, description="Decoded PAN and MS pixels read per PAN megapixel.")
    block_s: float = Field(default=5.0, description="Sharpening lost when a device disappears.")
    ledger_writes_per_s: float = Field(default=400.0, description="What the ledger's database can take.")
    api_items_per_s: float = Field(default=20.0, description="What the STAC API can take.")


class Fleet(Record):
    """What works on it, and what that costs."""

    gpus: int = Field(ge=1)
    cpus: int = Field(ge=1, description="Slots that stage, assess and publish.")
    runners: int = Field(ge=1, description="Scenes in work at the same time.")
    source_mb_per_s: float = Field(default=math.inf, gt=0)
    interruptions_per_gpu_hour: float = Field(default=0.0, ge=0)
    replacement_s: float = Field(default=300.0, ge=0, description="Until a new spot GPU works.")
    gpu_hour_price: float = 0.0
    cpu_hour_price: float = 0.0


class Archive(Record):
    """What is to be done."""

    scenes: int = Field(ge=1)
    mpx: float = Field(gt=0, description="Mean PAN megapixels of a scene.")
    spread: float = Field(default=0.0, ge=0, description="Standard deviation of the logarithm of the size.")
    bands: int = 4


class Forecast(Record):
    """What the model says."""

    hours: float
    money: float | None = Field(description="None where no price is known.")
    utilisation: dict[str, float] = Field(description="Share of the time that each shared thing is busy.")
    bottleneck: str
    gpu_hours: float
    gpu_hours_lost: float = Field(description="Repeated work and waits for replacements.")
    ledger_writes_per_s: float
    api_requests_per_s: float
    objects: int
    read_tb: float
    written_tb: float


def rates_from(measures: Iterable[Mapping[str, Any]]) -> Rates:  # Any: parsed JSON
    """Rates fitted by least squares to the measures that the ledger keeps of confirmed scenes.

    Scenes whose blocks were computed in several goes do not count.

    Raises:
        SizingError: No scene can be used.
    """
    needed = {"pixels", "stage_seconds", "sharpen_seconds", "assess_seconds", "seconds", "bytes_read"}
    used = [m for m in measures if needed <= m.keys() and m.get("blocks") == m.get("computed_blocks")]
    if not used:
        raise SizingError("no finished scene with times in this ledger; run some scenes first, or give --rates")
    sizes = [m["pixels"] / 1e6 for m in used]
    times = {name: [m[f"{name}_seconds"] for m in used] for name in ("stage", "sharpen", "assess")}
    rest = [m["seconds"] - sum(m[f"{name}_seconds"] for name in times) for m in used]
    fitted = {name: _fit(sizes, values) for name, values in (*times.items(), ("publish", rest))}
    read = sum(m["bytes_read"] for m in used) / sum(sizes)
    return Rates.model_validate({**fitted, "read_bytes_per_mpx": read})


def _fit(sizes: Sequence[float], seconds: Sequence[float]) -> Rate:
    """A line through the points with neither part negative; through the origin for scenes of much the same size.

    What such scenes differ by says more of bands and of other work than of their size.
    """
    mean_x, mean_y = sum(sizes) / len(sizes), sum(seconds) / len(seconds)
    if max(sizes) < ALIKE * min(sizes):
        return Rate(fixed_s=0.0, s_per_mpx=mean_y / mean_x)
    variance = sum((x - mean_x) ** 2 for x in sizes)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(sizes, seconds, strict=True)) / variance
    slope = min(max(0.0, slope), mean_y / mean_x)
    return Rate(fixed_s=max(0.0, mean_y - slope * mean_x), s_per_mpx=slope)


def forecast(archive: Archive, fleet: Fleet, rates: Rates, *, sample: int = 2000) -> Forecast:
    """Simulate an archive.

    Args:
        archive: What is to be done.
        fleet: What does it.
        rates: How fast.
        sample: At least so many scenes are simulated, and ``ROUNDS`` of every runner; the rest of a larger archive goes
            on at their pace.
    """
    parts = math.gcd(fleet.gpus, fleet.cpus, fleet.runners)
    parts = max(part for part in range(1, parts + 1) if parts % part == 0 and fleet.gpus // part >= min(4, fleet.gpus))
    many = max(1, archive.scenes // parts)
    count = min(many, max(sample, ROUNDS * fleet.runners // parts))
    run = _Run(archive, _part(fleet, parts), _part_of_rates(rates, parts), count)
    end_s = run.end_s + run.pace_s * (many - count)
    return _summary(archive, fleet, end_s, run, rates)


def _part(fleet: Fleet, parts: int) -> Fleet:
    changed = {name: getattr(fleet, name) // parts for name in ("gpus", "cpus", "runners")}
    return fleet.model_copy(update={**changed, "source_mb_per_s": fleet.source_mb_per_s / parts})


def _part_of_rates(rates: Rates, parts: int) -> Rates:
    return rates.model_copy(
        update={name: getattr(rates, name) / parts for name in ("ledger_writes_per_s", "api_items_per_s")}
    )


class _Run:
    """One simulation to its end: ``end_s``, ``pace_s`` per scene when all is busy, busy seconds of what is shared."""

    def __init__(self, archive: Archive, fleet: Fleet, rates: Rates, count: int) -> None:
        simpy = _simpy()
        self.fleet, self.rates, self.count = fleet, rates, count
        self.random = random.Random(1)  # noqa: S311 - a simulation
        self.sizes = [self._size(archive) for _ in range(count)]
        self.mpx = sum(self.sizes)
        self.lost_s = 0.0
        self.environment = simpy.Environment()
        capacities = {"gpu": fleet.gpus, "cpu": fleet.cpus, "source": 1, "ledger": 1, "stac api": 1}
        self.capacities = capacities
        self.shared = {name: simpy.Resource(self.environment, many) for name, many in capacities.items()}
        self.busy_s = dict.fromkeys(capacities, 0.0)
        self.finished_s: list[float] = []
        waiting = iter(self.sizes)
        for _ in range(min(fleet.runners, count)):
            self.environment.process(self._runner(waiting))
        self.environment.run()
        self.end_s = float(self.environment.now)
        first, last = int(0.3 * count), int(0.9 * count)
        self.pace_s = (self.finished_s[last] - self.finished_s[first]) / (last - first) if last > first else self.end_s

    def _size(self, archive: Archive) -> float:
        """Log-normal about the mean."""
        return archive.mpx * math.exp(self.random.gauss(-(archive.spread**2) / 2, archive.spread))

    def _runner(self, waiting: Iterator[float]) -> Steps:
        for mpx in waiting:
            yield from self._scene(mpx)
            self.finished_s.append(float(self.environment.now))

    def _scene(self, mpx: float) -> Steps:
        rates = self.rates
        write_s = LEDGER_WRITES_PER_SCENE / 4 / rates.ledger_writes_per_s
        yield from self._use("ledger", write_s)
        yield from self._use("source", rates.read_bytes_per_mpx * mpx / (self.fleet.source_mb_per_s * 1e6))
        yield from self._use("cpu", rates.stage.seconds(mpx))
        yield from self._use("ledger", write_s)
        yield from self._sharpen(rates.sharpen.seconds(mpx))
        yield from self._use("cpu", rates.assess.seconds(mpx))
        yield from self._use("ledger", write_s)
        yield from self._use("cpu", rates.publish.seconds(mpx))
        yield from self._use("stac api", 1 / rates.api_items_per_s)
        yield from self._use("ledger", write_s)

    def _use(self, name: str, seconds: float) -> Steps:
        if seconds == 0:
            return
        with self.shared[name].request() as turn:
            yield turn
            yield self.environment.timeout(seconds)
            self.busy_s[name] += seconds

    def _sharpen(self, seconds: float) -> Steps:
        """On a GPU that may disappear: the block in work is lost, the rest is done by the replacement."""
        with self.shared["gpu"].request() as turn:
            yield turn
            started, left = float(self.environment.now), seconds
            while left > 0:
                lasts = self._until_interruption()
                if lasts >= left:
                    yield self.environment.timeout(left)
                    break
                yield self.environment.timeout(lasts)
                left -= lasts - min(lasts, self.random.uniform(0, self.rates.block_s))
                yield self.environment.timeout(self.fleet.replacement_s)
            taken = float(self.environment.now) - started
            self.busy_s["gpu"] += taken
            self.lost_s += max(0.0, taken - seconds)

    def _until_interruption(self) -> float:
        rate = self.fleet.interruptions_per_gpu_hour / HOUR_S
        return self.random.expovariate(rate) if rate else math.inf


def _simpy() -> Any:  # Any: it ships no types
    try:
        import simpy
    except ImportError as err:
        raise SizingError("the model needs simpy: pip install 'pancrafter[sizing]'") from err
    return simpy


def _summary(archive: Archive, fleet: Fleet, end_s: float, run: _Run, rates: Rates) -> Forecast:
    per_scene = {name: seconds / run.count for name, seconds in run.busy_s.items()}
    # of the simulated part: its shared things are slower by as much as it has fewer scenes
    share = archive.scenes * run.fleet.gpus / fleet.gpus
    utilisation = {name: per_scene[name] * share / (end_s * many) for name, many in run.capacities.items()}
    runners = sum(per_scene.values()) * share / (end_s * run.fleet.runners)
    hours, mpx = end_s / HOUR_S, run.mpx / run.count * archive.scenes
    bottleneck = max(utilisation, key=lambda name: utilisation[name])
    if utilisation[bottleneck] < 0.8 and runners > utilisation[bottleneck]:
        bottleneck = "runners"
    per_s = archive.scenes / end_s
    return Forecast(
        hours=hours,
        money=hours * (fleet.gpus * fleet.gpu_hour_price + fleet.cpus * fleet.cpu_hour_price) or None,
        utilisation={**utilisation, "runners": runners},
        bottleneck=bottleneck,
        gpu_hours=per_scene["gpu"] * archive.scenes / HOUR_S,
        gpu_hours_lost=run.lost_s / run.count * archive.scenes / HOUR_S,
        ledger_writes_per_s=per_s * LEDGER_WRITES_PER_SCENE,
        api_requests_per_s=per_s * API_REQUESTS_PER_SCENE,
        objects=archive.scenes * OBJECTS_PER_SCENE,
        read_tb=mpx * rates.read_bytes_per_mpx / 1e12,
        written_tb=mpx * 1e6 * archive.bands * OUTPUT_BYTES_PER_VALUE / 1e12,
    )
