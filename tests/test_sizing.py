"""The sizing model against arithmetic, and its rates against the scenes that they come from."""

from __future__ import annotations

from typing import Any

import pytest

from pancrafter.sizing import Archive, Fleet, Rate, Rates, SizingError, forecast, rates_from

RATES = Rates(
    stage=Rate(fixed_s=1, s_per_mpx=0.1),
    sharpen=Rate(fixed_s=0, s_per_mpx=1),
    assess=Rate(fixed_s=1, s_per_mpx=0.1),
    publish=Rate(fixed_s=2, s_per_mpx=0),
    ledger_writes_per_s=1e9,
    api_items_per_s=1e9,
)
"""A scene of 10 Mpx: 2 s, 10 s on the GPU, 2 s, 2 s."""


def measures(mpx: float, **changed: Any) -> dict[str, Any]:
    times = {"stage_seconds": 1 + 0.1 * mpx, "sharpen_seconds": mpx, "assess_seconds": 1 + 0.1 * mpx}
    total = sum(times.values()) + 2
    others = {"pixels": mpx * 1e6, "seconds": total, "bytes_read": 4e6 * mpx, "blocks": 1, "computed_blocks": 1}
    return {**times, **others, **changed}


def test_one_after_the_other_is_the_sum() -> None:
    found = forecast(Archive(scenes=100, mpx=10), Fleet(gpus=1, cpus=1, runners=1), RATES)
    assert found.hours * 3600 == pytest.approx(100 * 16, rel=1e-3)
    assert found.gpu_hours == pytest.approx(100 * 10 / 3600)
    assert found.bottleneck == "runners"
    assert found.utilisation["gpu"] == pytest.approx(10 / 16, rel=1e-3)


@pytest.mark.parametrize(
    ("fleet", "seconds_per_scene", "bottleneck"),
    [
        (Fleet(gpus=1, cpus=8, runners=8), 10, "gpu"),
        (Fleet(gpus=4, cpus=2, runners=16), 3, "cpu"),
        (Fleet(gpus=8, cpus=16, runners=64, source_mb_per_s=10), 4, "source"),
    ],
)
def test_what_is_scarcest_sets_the_pace(fleet: Fleet, seconds_per_scene: float, bottleneck: str) -> None:
    found = forecast(Archive(scenes=1_000_000, mpx=10), fleet, RATES, sample=300)
    assert found.hours * 3600 / 1e6 == pytest.approx(seconds_per_scene, rel=0.02)
    assert found.bottleneck == bottleneck


def test_database_and_api_can_be_the_bottleneck() -> None:
    fleet = Fleet(gpus=64, cpus=64, runners=256)
    slow = RATES.model_copy(update={"ledger_writes_per_s": 4.0})
    found = forecast(Archive(scenes=1_000_000, mpx=10), fleet, slow, sample=500)
    assert (found.bottleneck, found.ledger_writes_per_s) == ("ledger", pytest.approx(4, rel=0.02))
    slow = RATES.model_copy(update={"api_items_per_s": 0.5})
    found = forecast(Archive(scenes=1_000_000, mpx=10), fleet, slow, sample=500)
    assert (found.bottleneck, found.api_requests_per_s) == ("stac api", pytest.approx(1.5, rel=0.02))


def test_interruptions_cost_blocks_and_waits() -> None:
    """Lost per interruption: half a block on average, and the wait for a new GPU."""
    spot = Fleet(gpus=1, cpus=8, runners=8, interruptions_per_gpu_hour=6, replacement_s=60)
    found = forecast(Archive(scenes=4000, mpx=100), spot, RATES)
    work = 4000 * 100 / 3600
    assert found.gpu_hours - found.gpu_hours_lost == pytest.approx(work)
    assert found.gpu_hours_lost == pytest.approx(work * 6 * (60 + 2.5) / 3600, rel=0.1)


def test_money_is_time_times_fleet() -> None:
    fleet = Fleet(gpus=2, cpus=4, runners=4, gpu_hour_price=3, cpu_hour_price=0.5)
    found = forecast(Archive(scenes=500, mpx=10), fleet, RATES)
    assert found.money == pytest.approx(found.hours * 8)
    free = fleet.model_copy(update={"gpu_hour_price": 0, "cpu_hour_price": 0})
    assert forecast(Archive(scenes=500, mpx=10), free, RATES).money is None, "not known"


def test_rates_come_from_scenes_that_were_done_in_one_go() -> None:
    found = rates_from([measures(1), measures(4), measures(16), measures(9, sharpen_seconds=0.1, computed_blocks=0)])
    for name in ("stage", "sharpen", "assess", "publish"):
        expected = getattr(RATES, name)
        assert getattr(found, name).fixed_s == pytest.approx(expected.fixed_s, abs=1e-9)
        assert getattr(found, name).s_per_mpx == pytest.approx(expected.s_per_mpx, abs=1e-9)
    assert found.read_bytes_per_mpx == pytest.approx(4e6)
    with pytest.raises(SizingError, match="run some scenes first"):
        rates_from([measures(1, computed_blocks=0)])


def test_rates_of_scenes_of_one_size_grow_with_the_size() -> None:
    """Where the smaller one was slower by chance, large scenes still cost more."""
    for found in (
        rates_from([measures(2), measures(2)]),
        rates_from([measures(2), measures(1.9, sharpen_seconds=1.9 * 2, seconds=2.2 + 3.8 + 2.2 + 2)]),
    ):
        assert found.sharpen.fixed_s == 0
        assert found.sharpen.s_per_mpx == pytest.approx(1, rel=0.5)
        assert found.stage.s_per_mpx > 0


def test_spread_keeps_the_mean() -> None:
    found = forecast(Archive(scenes=4000, mpx=10, spread=0.5), Fleet(gpus=1, cpus=8, runners=8), RATES)
    assert found.gpu_hours == pytest.approx(4000 * 10 / 3600, rel=0.05)


@pytest.mark.parametrize("interruptions", [0.0, 0.05, 1.0])
def test_a_large_fleet_is_never_faster_than_its_gpus(interruptions: float) -> None:
    """Simulated by a part of it: the pace of the whole, and time grows with the interruptions."""
    fleet = Fleet(gpus=64, cpus=256, runners=640, interruptions_per_gpu_hour=interruptions)
    found = forecast(Archive(scenes=2_000_000, mpx=10), fleet, RATES)
    least = 2_000_000 * 10 * (1 + interruptions * (300 + 2.5) / 3600) / 64 / 3600
    assert found.hours == pytest.approx(least, rel=0.03)
    assert found.utilisation["gpu"] == pytest.approx(1, abs=0.03)
