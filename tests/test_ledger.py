from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy as sa

from pancrafter.cli.ledger import one_row
from pancrafter.errors import (
    IllegalTransitionError,
    InvalidSceneError,
    LeaseLostError,
    LedgerError,
    PancrafterError,
    SinkError,
    TransientReadError,
)
from pancrafter.ledger import Ledger, open_ledger
from pancrafter.ledger_tables import METADATA, SCHEMA_VERSION
from pancrafter.settings import Settings
from pancrafter.states import (
    IN_WORK,
    FoundCounts,
    Lease,
    LedgerRow,
    Look,
    Order,
    SceneKey,
    State,
    Work,
    check_transition,
    may_follow,
)
from pancrafter.types import AssetRef, Refusal, Scene

SINK = "sink"
POSTGRES_URL = os.environ.get("PANCRAFTER_TEST_POSTGRES")
"""Empty PostgreSQL database to repeat these tests on; without it they run on SQLite only."""


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES_URL else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state' / 'ledger.db'}"
        return
    assert POSTGRES_URL
    yield POSTGRES_URL
    engine = sa.create_engine(POSTGRES_URL)
    METADATA.drop_all(engine)
    engine.dispose()


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    with Ledger(url, clock=clock, max_attempts=3, backoff_s=60, who="tester") as opened:
        yield opened


def scene(item_id: str = "a", *, fingerprint: str = "f1", day: int = 1) -> Scene:
    return Scene(
        collection="c",
        item_id=item_id,
        sensor="worldview-3",
        acquired=f"2026-01-{day:02d}T10:00:00Z",
        pan=AssetRef(key="pan", href=f"https://h/{item_id}/pan.tif"),
        ms=(AssetRef(key="ms", href=f"https://h/{item_id}/ms.tif"),),
        bands=("red",),
        fingerprint=fingerprint,
        source_href=f"https://h/{item_id}.json",
        geometry={"type": "Point", "coordinates": [1.0, 2.0]},
    )


def work(item_id: str = "a", *, fingerprint: str = "f1", recipe: str = "r1", day: int = 1) -> Work:
    return Work(
        scene=scene(item_id, fingerprint=fingerprint, day=day),
        recipe=recipe,
        output_item_id=f"{item_id}-{fingerprint}-{recipe}",
    )


def in_collection(collection: str, item_id: str) -> Work:
    found = scene(item_id).model_copy(update={"collection": collection})
    return Work(scene=found, recipe="r1", output_item_id=f"{collection}-{item_id}")


def refusal(item_id: str = "a", code: str = "no-pan", reason: str = "no PAN asset") -> Refusal:
    return Refusal(collection="c", item_id=item_id, code=code, reason=reason)


def key(item_id: str = "a") -> SceneKey:
    return SceneKey(sink=SINK, collection="c", item_id=item_id)


def claim(ledger: Ledger, item_id: str = "a", *, owner: str = "w1", lease_s: float = 100) -> Lease:
    lease = ledger.claim(key(item_id), owner, lease_s, recipe=row(ledger, item_id).recipe or "")
    assert lease is not None
    return lease


def row(ledger: Ledger, item_id: str = "a") -> LedgerRow:
    found = ledger.show(key(item_id))
    assert found is not None
    return found


def claimable(ledger: Ledger) -> list[str]:
    return [standing.item_id for standing in ledger.each(SINK) if standing.claimable]


def confirm(ledger: Ledger, item_id: str = "a") -> None:
    lease = claim(ledger, item_id)
    for state in ("staged", "sharpened", "assessed", "published", "confirmed"):
        ledger.advance(lease, state)


@pytest.mark.parametrize("item_id", ["S1", "30/123/S1"])
def test_a_key_is_read_back_as_it_was_written(item_id: str) -> None:
    assert SceneKey.parse(str(key(item_id)), SINK) == key(item_id)


@pytest.mark.parametrize("text", ["S1", "c/", "/S1", ""])
def test_a_key_without_collection_or_item_is_refused(text: str) -> None:
    with pytest.raises(InvalidSceneError, match="expected collection/item_id"):
        SceneKey.parse(text, SINK)


def test_a_scene_whose_id_holds_slashes_is_found_by_key_and_by_id(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work("30/123/S1")])
    assert one_row(ledger, "c/30/123/S1", None).key == one_row(ledger, "30/123/S1", SINK).key == key("30/123/S1")


# --- the transition table -----------------------------------------------------------------------------------------

ALLOWED = [
    "found>eligible",
    "found>refused",
    "refused>found",
    "eligible>found",
    "held>found",
    "dead>found",
    "refused>eligible",
    "eligible>claimed",
    "eligible>confirmed",
    "eligible>refused",
    "claimed>staged",
    "claimed>failed",
    "claimed>eligible",
    "staged>sharpened",
    "staged>failed",
    "staged>eligible",
    "sharpened>assessed",
    "sharpened>failed",
    "sharpened>eligible",
    "assessed>published",
    "assessed>held",
    "assessed>failed",
    "assessed>eligible",
    "published>confirmed",
    "published>failed",
    "published>eligible",
    "held>eligible",
    "held>refused",
    "confirmed>eligible",
    "failed>eligible",
    "failed>dead",
    "dead>eligible",
    "dead>refused",
]


@pytest.mark.parametrize(("before", "after"), list(product(State, State)))
def test_every_pair_of_states_is_decided(before: State, after: State) -> None:
    allowed = f"{before}>{after}" in ALLOWED
    assert may_follow(before, after) is allowed
    if allowed:
        check_transition(before, after)
    else:
        with pytest.raises(IllegalTransitionError, match=f"is {before}, cannot become {after}"):
            check_transition(before, after, scene="c/a")


@pytest.mark.parametrize(("before", "after"), list(product(sorted(IN_WORK), State)))
def test_the_database_obeys_the_table(ledger: Ledger, before: State, after: State) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger)
    for state in (State.STAGED, State.SHARPENED, State.ASSESSED, State.PUBLISHED):
        if row(ledger).state is before:
            break
        ledger.advance(lease, state)
    assert row(ledger).state is before
    forward = after in (IN_WORK | {State.HELD, State.CONFIRMED}) and may_follow(before, after)
    if forward:
        ledger.advance(lease, after)
        assert row(ledger).state is after
    else:
        with pytest.raises(IllegalTransitionError):
            ledger.advance(lease, after)
        assert row(ledger).state is before


# --- discovery ----------------------------------------------------------------------------------------------------


def test_new_known_and_refused_are_counted(ledger: Ledger) -> None:
    assert ledger.record_found(SINK, [work("a"), work("b"), refusal("x")]) == FoundCounts(new=3, refused=1)
    assert ledger.record_found(SINK, [work("a"), refusal("x"), work("n")]) == FoundCounts(new=1, known=2, refused=1)
    counts = ledger.counts(SINK)
    assert (counts[State.ELIGIBLE], counts[State.REFUSED], sum(counts.values())) == (3, 1, 4)
    assert row(ledger, "x").reason == "no PAN asset"
    assert row(ledger, "a").scene == scene("a")


def test_one_item_listed_twice_is_one_scene(ledger: Ledger) -> None:
    assert ledger.record_found(SINK, [work("a"), work("a", fingerprint="f2")]) == FoundCounts(new=1)
    assert row(ledger).fingerprint == "f2"


def test_two_sinks_are_two_pieces_of_work(ledger: Ledger) -> None:
    ledger.record_found("one", [work()])
    assert ledger.record_found("two", [work()]) == FoundCounts(new=1)
    assert [r.key.sink for r in ledger.rows(sink="two")] == ["two"]
    assert ledger.counts("one")[State.ELIGIBLE] == 1


@pytest.mark.parametrize("change", [{"fingerprint": "f2"}, {"recipe": "r2"}])
def test_a_changed_source_or_recipe_supersedes_what_was_confirmed(ledger: Ledger, change: dict[str, str]) -> None:
    ledger.record_found(SINK, [work()])
    confirm(ledger)
    assert ledger.record_found(SINK, [work()]) == FoundCounts(known=1)
    assert ledger.record_found(SINK, [work(**change)]) == FoundCounts(changed=1)
    after = row(ledger)
    assert (after.state, after.supersedes, after.attempts, after.measures) == ("eligible", "a-f1-r1", 0, {})
    assert after.output_item_id == work(**change).output_item_id
    assert "will supersede a-f1-r1" in ledger.why(key())[-1].message


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_item_says_now_counts_for_what_is_not_finished(ledger: Ledger, *, fails: bool) -> None:
    found = {name: work(name) for name in ("a", "done")}
    ledger.record_found(SINK, found.values())
    confirm(ledger, "done")
    if fails:
        ledger.fail(claim(ledger), InvalidSceneError("65535 is no DN"))
    before = {name: row(ledger, name) for name in found}
    ms = (AssetRef(key="ms", href="https://h/ms.tif", nodata=65535),)
    told = {
        name: one.model_copy(update={"scene": one.scene.model_copy(update={"ms": ms})}) for name, one in found.items()
    }
    assert ledger.record_found(SINK, told.values()) == FoundCounts(known=2)
    after = row(ledger)
    assert after == before["a"].model_copy(update={"scene": told["a"].scene, "updated": after.updated})
    assert row(ledger, "done") == before["done"]


def test_a_change_before_work_began_keeps_what_it_supersedes(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    confirm(ledger)
    ledger.record_found(SINK, [work(fingerprint="f2")])
    ledger.record_found(SINK, [work(fingerprint="f3")])
    assert (row(ledger).supersedes, row(ledger).fingerprint) == ("a-f1-r1", "f3")


def test_back_to_what_is_published_supersedes_nothing(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    confirm(ledger)
    ledger.record_found(SINK, [work(recipe="r2")])
    ledger.record_found(SINK, [work()])
    assert (row(ledger).output_item_id, row(ledger).supersedes) == ("a-f1-r1", None)
    assert row(ledger).state == "confirmed", "nobody has begun to replace it"
    ledger.record_found(SINK, [work(recipe="r2")])
    assert row(ledger).supersedes == "a-f1-r1"


def test_back_to_what_was_published_is_made_again_once_its_successor_was_begun(ledger: Ledger) -> None:
    """It may have been superseded by an attempt that died before it said so."""
    ledger.record_found(SINK, [work()])
    confirm(ledger)
    ledger.record_found(SINK, [work(recipe="r2")])
    lease = claim(ledger)
    ledger.advance(lease, State.STAGED, stage_seconds=1.0)
    assert ledger.fail(lease, TransientReadError("stopped")) is State.ELIGIBLE
    ledger.record_found(SINK, [work()])
    assert (row(ledger).state, row(ledger).output_item_id, row(ledger).supersedes) == ("eligible", "a-f1-r1", None)
    assert (row(ledger).attempts, row(ledger).not_before, row(ledger).measures) == (0, None, {})


def test_only_what_nobody_has_begun_is_taken_over(ledger: Ledger) -> None:
    """Begun since it changed: what it was before does not count."""
    ledger.record_found(SINK, [work("a"), work("b"), work("c"), work("d"), work("e"), refusal("x")])
    lease = claim(ledger, "b")
    ledger.advance(lease, State.STAGED, stage_seconds=1.0)
    ledger.release(lease, "stopped")
    claim(ledger, "c")
    for name in "de":
        confirm(ledger, name)
    ledger.record_found(SINK, [work("d", recipe="r2")])
    ledger.redrive([key("e")])
    assert ledger.take_over([key(name) for name in "abcdex"]) == 2
    states = ["confirmed", "eligible", "claimed", "confirmed", "eligible", "refused"]
    assert [row(ledger, name).state for name in "abcdex"] == states
    assert ledger.record_found(SINK, [work("a"), work("d", recipe="r2")]) == FoundCounts(known=2)


def test_a_catalog_at_another_place_is_gone_on_with(ledger: Ledger) -> None:
    """But for what is in work; what the ledger knows of the new place already stays."""
    moved = "/data/moved"
    ledger.record_found(SINK, [work("a"), work("b"), work("c")])
    confirm(ledger, "a")
    ledger.mark_refused(key("b"), "by-hand", "licence")
    claim(ledger, "c")
    ledger.note_look(SINK, "source", datetime(2026, 1, 1, tzinfo=UTC), "1 published")
    ledger.record_found(moved, [work("a")])
    for _ in range(2):
        ledger.go_on(moved, SINK)
    rows = {row.key.item_id: row for row in ledger.rows(sink=moved)}
    assert {name: row.state for name, row in rows.items()} == {"a": "eligible", "b": "refused"}
    history = [(event.at, event.after, event.message) for event in ledger.why(key("b"))]
    assert [(event.at, event.after, event.message) for event in ledger.why(rows["b"].key)] == history
    assert len(ledger.why(rows["a"].key)) == 1
    assert ledger.last_look(moved, "source") == ledger.last_look(SINK, "source") is not None
    assert ledger.counts(SINK)[State.CLAIMED] == 1


def test_refused_stays_refused_until_the_source_changes(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    ledger.mark_refused(key(), "by-hand", "licence")
    assert ledger.record_found(SINK, [work()]) == FoundCounts(known=1)
    assert ledger.record_found(SINK, [work(recipe="r2")]) == FoundCounts(known=1)
    assert row(ledger).state == "refused"
    assert ledger.record_found(SINK, [work(fingerprint="f2")]) == FoundCounts(changed=1)
    assert (row(ledger).state, row(ledger).reason) == ("eligible", None)


@pytest.mark.parametrize("published", [False, True])
def test_what_a_person_refused_survives_a_run_that_does_not_recognise_it(ledger: Ledger, *, published: bool) -> None:
    """One without the contract or the access of the others, and then one that has both again."""
    ledger.record_found(SINK, [work()])
    if published:
        confirm(ledger)
        with pytest.raises(IllegalTransitionError):
            ledger.mark_refused(key(), "by-hand", "licence")
    ledger.mark_refused(key(), "withdrawn", "licence", withdrawn=True)
    assert ledger.record_found(SINK, [refusal(code="forbidden_href")]) == FoundCounts(known=1, refused=1)
    assert ledger.record_found(SINK, [work()]) == FoundCounts(known=1)
    assert (row(ledger).state, row(ledger).code, row(ledger).reason) == ("refused", "withdrawn", "licence")


def test_an_item_refused_from_its_metadata_comes_back_when_recognised(ledger: Ledger) -> None:
    ledger.record_found(SINK, [refusal()])
    assert ledger.record_found(SINK, [work()]) == FoundCounts(changed=1)
    assert row(ledger).state == "eligible"
    assert ledger.record_found(SINK, [refusal()]) == FoundCounts(changed=1, refused=1)
    assert (row(ledger).state, row(ledger).code, row(ledger).scene) == ("refused", "no-pan", None)
    unread = refusal(reason="https://h/a.json?sig=SECRET: no PAN asset")
    assert ledger.record_found(SINK, [unread]) == FoundCounts(changed=1, refused=1)
    assert ledger.record_found(SINK, [unread]) == FoundCounts(known=1, refused=1)
    assert ledger.record_found(SINK, [unread.model_copy(update={"code": "x"})]) == FoundCounts(changed=1, refused=1)


def test_a_published_scene_is_not_withdrawn_by_a_refusal(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    confirm(ledger)
    assert ledger.record_found(SINK, [refusal()]) == FoundCounts(known=1, refused=1)
    assert row(ledger).state == "confirmed"


def test_a_scene_in_work_is_left_alone(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger)
    assert ledger.record_found(SINK, [work(fingerprint="f2")]) == FoundCounts(busy=1)
    assert ledger.record_found(SINK, [refusal()]) == FoundCounts(busy=1, refused=1)
    ledger.advance(lease, "staged")
    assert row(ledger).fingerprint == "f1"


# --- work ---------------------------------------------------------------------------------------------------------


def test_rows_are_ordered_and_limited(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work("b", day=5), work("c", day=1), work("d", day=9)])
    assert [r.key.item_id for r in ledger.rows(order="oldest")] == ["c", "b", "d"]
    assert [r.key.item_id for r in ledger.rows(order="newest", limit=2)] == ["d", "b"]
    assert [r.key.item_id for r in ledger.rows()] == ["b", "c", "d"]


def test_a_scene_goes_all_the_way_and_tells_its_story(ledger: Ledger, clock: Clock) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger)
    ledger.advance(lease, State.STAGED, bytes_read=7, store_uri="s")
    clock.wait(5)
    ledger.advance(lease, State.SHARPENED, "16 blocks", seconds={"sharpen": 1.5}, bytes_read=9)
    ledger.advance(lease, State.ASSESSED)
    ledger.advance(lease, State.PUBLISHED)
    ledger.advance(lease, State.CONFIRMED)
    done = row(ledger)
    assert done.measures == {"bytes_read": 9, "store_uri": "s", "seconds": {"sharpen": 1.5}}
    assert (done.lease_owner, done.lease_expires, done.updated - done.created) == (None, None, timedelta(seconds=5))
    story = ledger.why(key())
    assert [f"{e.before}>{e.after}" for e in story] == [
        "found>eligible",
        "eligible>claimed",
        "claimed>staged",
        "staged>sharpened",
        "sharpened>assessed",
        "assessed>published",
        "published>confirmed",
    ]
    assert [e.who for e in story[:2]] == ["tester", "w1"]
    assert story[3].message == "16 blocks"
    assert ledger.claim(key(), "w2", 10, recipe="r1") is None


def test_what_was_confirmed_stays_counted(ledger: Ledger, clock: Clock) -> None:
    ledger.record_found(SINK, [work("a"), work("b"), work("made before")])
    ledger.record_found("elsewhere", [work("a")])
    for item_id in "ab":
        confirm(ledger, item_id)
    assert ledger.take_over([key("made before")]) == 1
    assert ledger.confirmations(SINK) == (0, 0), "an event with a lower id may still be on its way"
    clock.wait(60)
    first, last = ledger.confirmations(SINK)
    assert first == 2
    ledger.mark_refused(key("b"), "withdrawn", "clouds", withdrawn=True)
    ledger.record_found(SINK, [work("a", fingerprint="f2")])
    confirm(ledger, "a")
    clock.wait(60)
    assert ledger.confirmations(SINK, last)[0] == 1
    assert ledger.confirmations(SINK)[0] == 3
    assert ledger.confirmations("elsewhere")[0] == 0


def test_only_one_gets_the_claim(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    assert claim(ledger).fence == 1
    assert ledger.claim(key(), "w2", 100, recipe="r1") is None
    assert ledger.claim(key("nobody knows"), "w2", 100, recipe="r1") is None
    assert claimable(ledger) == []


def test_a_scene_is_claimed_only_by_the_recipe_it_is_planned_with(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    ledger.record_found(SINK, [work(recipe="r2")])
    assert ledger.claim(key(), "w1", 100, recipe="r1") is None
    assert (row(ledger).state, row(ledger).attempts) == ("eligible", 0)
    assert ledger.claim(key(), "w2", 100, recipe="r2") is not None


def test_a_late_worker_can_do_nothing(ledger: Ledger, clock: Clock) -> None:
    ledger.record_found(SINK, [work()])
    late = claim(ledger, lease_s=10)
    ledger.advance(late, "staged")
    clock.wait(11)
    ledger.advance(late, "sharpened")  # expired, but nobody took it
    assert [k.item_id for k in ledger.sweep().freed] == ["a"]
    for attempt in (
        lambda: ledger.advance(late, "assessed"),
        lambda: ledger.renew(late),
        lambda: ledger.fail(late, TransientReadError("x")),
        lambda: ledger.release(late, "x"),
    ):
        with pytest.raises(LeaseLostError, match=r"fence 1\) is lost: now eligible, fence 2, nobody holds it"):
            attempt()
    heir = claim(ledger, owner="w1")  # the same owner name does not help the old lease
    assert heir.fence == 3
    with pytest.raises(LeaseLostError, match="w1 holds it"):
        ledger.advance(late, "staged")
    ledger.advance(heir, "staged")


def test_another_owner_with_the_right_fence_is_refused(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger)
    with pytest.raises(LeaseLostError, match="w1 holds it"):
        ledger.advance(lease.model_copy(update={"owner": "thief"}), "staged")


def test_renewing_keeps_the_sweeper_away(ledger: Ledger, clock: Clock) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger, lease_s=10)
    clock.wait(8)
    ledger.renew(lease)
    clock.wait(8)
    assert ledger.sweep().freed == ()
    assert row(ledger).lease_expires == clock.now + timedelta(seconds=2)
    clock.wait(3)
    assert ledger.sweep().freed == (key(),)


def test_silent_workers_are_bounded(ledger: Ledger, clock: Clock) -> None:
    ledger.record_found(SINK, [work()])
    for _ in range(3):
        claim(ledger, lease_s=1)
        clock.wait(2)
        swept = ledger.sweep()
    assert (swept.freed, swept.dead) == ((), (key(),))
    assert row(ledger).code == "LeaseExpired"
    assert "3 attempts" in (row(ledger).reason or "")


def test_transient_errors_wait_longer_each_time_then_die(ledger: Ledger, clock: Clock) -> None:
    ledger.record_found(SINK, [work()])
    for pause in (60, 120):
        assert ledger.fail(claim(ledger), TransientReadError("timeout", asset="pan")) is State.ELIGIBLE
        clock.wait(pause - 1)
        assert claimable(ledger) == []
        assert ledger.claim(key(), "w", 10, recipe="r1") is None
        clock.wait(1)
        assert claimable(ledger) == ["a"]
    assert ledger.fail(claim(ledger), TransientReadError("timeout", asset="pan")) is State.DEAD
    dead = row(ledger)
    assert (dead.code, dead.reason, dead.attempts) == ("TransientReadError", "asset pan: timeout", 3)
    assert [e.after for e in ledger.why(key())][-2:] == ["failed", "dead"]


def test_input_errors_are_final_and_system_errors_are_not_the_scenes_fault(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work("a"), work("b")])
    assert ledger.fail(claim(ledger, "a"), InvalidSceneError("all nodata")) is State.DEAD
    assert ledger.fail(claim(ledger, "b"), SinkError("disk full")) is State.ELIGIBLE
    assert (row(ledger, "b").attempts, row(ledger, "b").not_before) == (0, None)
    assert row(ledger, "b").code is None
    assert "SinkError: disk full" in ledger.why(key("b"))[-1].message


@pytest.mark.parametrize("error", [one("wanting") for one in PancrafterError.__subclasses__() if one.kind == "setup"])
def test_what_waits_for_a_setting_comes_after_others(ledger: Ledger, error: PancrafterError) -> None:
    """Its tries have no end: under a limit nothing else would have its turn."""
    ledger.record_found(SINK, [work(name, day=day) for day, name in enumerate("abc", 1)])
    assert ledger.fail(claim(ledger, "a"), error) is State.ELIGIBLE
    assert ledger.fail(claim(ledger, "b"), SinkError("disk full")) is State.ELIGIBLE
    assert (row(ledger, "a").code, row(ledger, "a").reason) == (type(error).__name__, str(error))
    assert [item_id for _, item_id in ledger.claimable(SINK)] == ["b", "c", "a"]
    assert ledger.redrive(states=[State.ELIGIBLE]).redriven == (key("a"),)
    assert [item_id for _, item_id in ledger.claimable(SINK)] == ["a", "b", "c"]


def test_success_forgets_earlier_trouble(ledger: Ledger, clock: Clock) -> None:
    ledger.record_found(SINK, [work()])
    ledger.fail(claim(ledger), TransientReadError("timeout"))
    clock.wait(60)
    confirm(ledger)
    assert (row(ledger).code, row(ledger).reason) == (None, None)


def test_signatures_and_passwords_stay_out(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    message = "GET https://h/p.tif?sig=SECRET&x=1 failed; also s3://user:SECRET@h/k and 'https://h/q?token=SECRET'"
    ledger.fail(claim(ledger), InvalidSceneError(message))
    stored = json.dumps([r.model_dump(mode="json") for r in ledger.rows()]) + str(ledger.why(key()))
    assert "SECRET" not in stored
    assert "https://h/p.tif?... failed" in stored


# --- repair -------------------------------------------------------------------------------------------------------


def test_redrive_by_filter_and_by_key(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work("a"), work("b"), work("c"), work("d"), refusal("x"), work("e")])
    ledger.fail(claim(ledger, "a"), InvalidSceneError("all nodata"))
    ledger.fail(claim(ledger, "b"), InvalidSceneError("no overlap"))
    ledger.mark_refused(key("c"), "person", "looks bad")
    confirm(ledger, "d")
    claim(ledger, "e")
    assert ledger.redrive(reason_contains="NODATA", message="mask fixed").redriven == (key("a"),)
    assert (row(ledger, "a").state, row(ledger, "a").attempts, row(ledger, "a").reason) == ("eligible", 0, None)
    assert ledger.why(key("a"))[-1].message == "mask fixed"
    assert ledger.redrive(code="GridMismatchError").redriven == ()
    result = ledger.redrive([key("b"), key("c"), key("d"), key("x"), key("e")])
    assert result.redriven == (key("b"), key("c"), key("d"))
    assert [(k.item_id, why.split(";")[0]) for k, why in result.left] == [
        ("x", "refused from its metadata"),
        ("e", "w1 is working on it"),
    ]
    with pytest.raises(LedgerError, match="scene c/zzz: not in ledger"):
        ledger.redrive([key("zzz")])


def test_workers_need_not_wait_for_a_redrive_of_very_many(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SQLite one transaction keeps all others from writing, and after a minute they give up."""
    monkeypatch.setattr("pancrafter.ledger.BATCH", 2)
    names = ("a", "b", "c", "d", "e")
    ledger.record_found(SINK, map(work, names))
    for name in names:
        ledger.fail(claim(ledger, name), InvalidSceneError("all nodata"))
    written, locked = list[int](), set[int]()

    def count(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if text.startswith("UPDATE scene"):
            written[-1] += 1
        if "FOR UPDATE" in text:
            locked.add(len(written))

    sa.event.listen(ledger._engine, "begin", lambda _: written.append(0))
    sa.event.listen(ledger._engine, "before_cursor_execute", count)
    assert ledger.redrive().redriven == tuple(map(key, names))
    assert written == [0, 2, 2, 1]
    written.clear()
    assert ledger.take_over(map(key, names)) == len(names)
    assert written == [2, 2, 1]
    written.clear()
    locked.clear()
    assert ledger.redrive(map(key, reversed(names))).redriven == tuple(map(key, reversed(names)))
    assert 1 not in locked, "scenes are looked up before any is locked: else two redrives lock each other out"


def test_a_wildcard_in_a_filter_is_just_text(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work("a")])
    ledger.fail(claim(ledger, "a"), InvalidSceneError("all nodata"))
    assert ledger.redrive(reason_contains="%").redriven == ()


def test_refusing_by_key_respects_workers_and_readers(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work("a"), work("b")])
    claim(ledger, "a")
    with pytest.raises(LeaseLostError, match="w1 is working on it"):
        ledger.mark_refused(key("a"), "person", "no")
    confirm(ledger, "b")
    with pytest.raises(IllegalTransitionError, match="is confirmed, cannot become refused"):
        ledger.mark_refused(key("b"), "person", "no")


def test_held_waits_for_a_person(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger)
    for state in ("staged", "sharpened", "assessed", "held"):
        ledger.advance(lease, state, hqnr=0.3)
    assert (row(ledger).state, row(ledger).lease_owner, row(ledger).measures) == ("held", None, {"hqnr": 0.3})
    with pytest.raises(LeaseLostError):
        ledger.advance(lease, "published")
    assert ledger.redrive().redriven == (key(),)


# --- reading ------------------------------------------------------------------------------------------------------


def test_rows_filter(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work("a", day=2), work("b", day=1), refusal("x")])
    assert [r.key.item_id for r in ledger.rows(states=["eligible"], order="oldest")] == ["b", "a"]
    assert [r.key.item_id for r in ledger.rows(sensor="worldview-3", limit=1)] == ["a"]
    assert ledger.rows(collection="other") == []
    assert [str(r.key) for r in ledger.find("x")] == ["c/x"]
    assert ledger.show(key("never")) is None
    assert ledger.why(key("never")) == []


def test_nobody_claims_a_scene_while_its_leftovers_are_removed(url: str) -> None:
    with Ledger(url) as sweeper, Ledger(url) as other:
        sweeper.record_found(SINK, [work()])
        with ThreadPoolExecutor(1) as pool:
            with sweeper.unclaimable(key()) as standing:
                assert (standing.state, standing.fence) == (State.ELIGIBLE, 0)
                claiming = pool.submit(claim, other)
                with pytest.raises(TimeoutError):
                    claiming.result(timeout=0.5)
            assert claiming.result(timeout=60).fence == 1


# --- clocks that are wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [1, 24 * 40])
def test_a_wrong_clock_costs_work_but_nothing_is_published_twice(url: str, hours: float) -> None:
    """A sweeper is ahead, or the worker behind: its lease seems to have run out, another one gets the scene, and the
    fence stops the first one."""
    early, late = Clock(), Clock()
    late.wait(3600 * hours)
    with Ledger(url, clock=early) as slow, Ledger(url, clock=late) as fast:
        slow.record_found(SINK, [work()])
        first = claim(slow, owner="w1", lease_s=900)
        slow.advance(first, "staged")
        assert fast.sweep().freed == (key(),)
        second = claim(fast, owner="w2")
        for step in (
            lambda: slow.renew(first),
            lambda: slow.advance(first, "sharpened"),
            lambda: slow.note(first, fact=1),
            lambda: slow.fail(first, TransientReadError("slow")),
            lambda: slow.release(first, "late"),
        ):
            with pytest.raises(LeaseLostError, match="w2 holds it"):
                step()
        for state in ("staged", "sharpened", "assessed", "published", "confirmed"):
            fast.advance(second, state)
        assert [event.after for event in slow.why(key())].count(State.CONFIRMED) == 1
        assert slow.record_found(SINK, [work()]).known == 1, "and it is not done again"


def test_a_sweeper_that_is_behind_frees_later_and_takes_nothing_from_the_living(url: str, clock: Clock) -> None:
    behind = Clock()
    behind.wait(-3600)
    with Ledger(url, clock=clock) as right, Ledger(url, clock=behind) as wrong:
        right.record_found(SINK, [work()])
        claim(right, lease_s=900)
        clock.wait(1000)
        behind.wait(1000)
        assert wrong.sweep().freed == ()
        assert wrong.claim(key(), "w2", 900, recipe="r1") is None
        assert right.sweep().freed == (key(),)


@pytest.mark.parametrize("hours", [-36, 36])
def test_a_database_server_decides_by_its_own_clock(url: str, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL the clock of this machine counts for nothing; a SQLite ledger is of one machine and goes by it."""
    with Ledger(url) as ledger:
        ledger.record_found(SINK, [work()])
        claim(ledger, lease_s=900)
        before = ledger.now()
        shift = timedelta(hours=hours)

        class Wrong(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return datetime.now(tz) + shift

        monkeypatch.setattr("pancrafter.ledger.datetime", Wrong)
        moved = url.startswith("sqlite")
        assert abs(ledger.now() - before - (shift if moved else timedelta())) < timedelta(hours=1)
        assert ledger.sweep().freed == ((key(),) if moved and hours > 0 else ())


def test_a_look_of_the_future_is_no_look(ledger: Ledger, clock: Clock) -> None:
    """Noted while the clock was ahead, when the window lay behind everything new: nights since then are not done."""
    good = clock.now
    clock.wait(3600)
    ledger.note_look(SINK, "s", good, "a good night")
    clock.wait(20 * 86400 - 3600)
    ledger.note_look(SINK, "s", clock.now, "a night with a wrong clock")
    clock.wait(-8 * 86400)
    assert ledger.last_look(SINK, "s") == Look(good, good + timedelta(hours=1))
    clock.wait(30 * 86400)
    assert ledger.last_look(SINK, "s") == Look(good + timedelta(days=20), good + timedelta(days=20))


# --- the database -------------------------------------------------------------------------------------------------


def test_what_is_not_a_ledger_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.db").write_text("this is not a database, only some text" * 100)
    with pytest.raises(LedgerError, match=r"x\.db.*not a database"):
        Ledger(f"sqlite:///{tmp_path / 'x.db'}")
    for senseless in ("ledger.db", "postgresql+psycopg://user@host:port/database"):
        with pytest.raises(LedgerError, match="expected like sqlite:///"):
            Ledger(senseless)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for account in ("user", "user:pa/ss", "user:pa?s/s"):
        with pytest.raises(LedgerError, match=r"psycopg://host/database: .* pip install 'pancrafter\[server\]'"):
            Ledger(f"postgresql+psycopg://{account}@host/database")
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot open"):
        Ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")
    (tmp_path / "link.db").symlink_to(tmp_path / "gone" / "ledger.db")
    with pytest.raises(LedgerError, match=r"expected a database this process may read and write; .* the rights"):
        Ledger(f"sqlite:///{tmp_path / 'link.db'}")


def test_a_new_file_is_for_its_owner_and_one_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    for name, rights in (("new.db", 0o600), ("shared.db", 0o640)):
        if name == "shared.db":
            (tmp_path / name).touch(rights)
        with Ledger(f"sqlite:///{tmp_path / name}") as ledger:
            ledger.record_found(SINK, [work("s1")])
            found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob(f"{name}*")}
        assert found == dict.fromkeys((name, f"{name}-wal", f"{name}-shm"), rights)


def test_passwords_of_the_address_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger("nodatabase://user:SECRET@host/db")
    assert "SECRET" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    with Ledger("sqlite:///file:ledger.db?uri=true&password=SECRET") as ledger:
        assert ledger.url == "sqlite:///file:ledger.db"


def test_state_survives(url: str) -> None:
    with Ledger(url) as first:
        first.record_found(SINK, [work()])
    with Ledger(url) as later:
        assert later.counts()[State.ELIGIBLE] == 1


def _write_and_break(ledger: Ledger) -> None:
    with ledger._transaction(write=True) as connection:
        connection.execute(METADATA.tables["scene"].update().values(state="staged"))
        raise RuntimeError("power cut")


def test_a_failed_transaction_leaves_nothing(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger)
    with pytest.raises(LedgerError, match=r"scene c/a: .*not JSON serializable"):
        ledger.advance(lease, "staged", bad=object())
    with pytest.raises(RuntimeError, match="power cut"):
        _write_and_break(ledger)
    assert (row(ledger).state, len(ledger.why(key()))) == ("claimed", 2)


def test_measures_that_databases_dislike_are_kept_plain(ledger: Ledger) -> None:
    ledger.record_found(SINK, [work()])
    lease = claim(ledger)
    ledger.advance(lease, "staged", "odd \0 text", hqnr=float("nan"), text="a\0b", nested={"x": (1, float("inf"))})
    assert row(ledger).measures == {"hqnr": None, "text": "ab", "nested": {"x": [1, None]}}


def test_sqlite_waits_in_line(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as opened:
        opened.record_found(SINK, [work()])
    connection = sqlite3.connect(tmp_path / "ledger.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def _work_all(url: str, owner: str, gate: object, done: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    with Ledger(url) as ledger:
        won: list[str] = []
        while rows := ledger.rows(states=[State.ELIGIBLE], limit=20):
            for candidate in rows:
                lease = ledger.claim(candidate.key, owner, 600, recipe="r1")
                if lease is not None:
                    won.append(candidate.key.item_id)
                    ledger.advance(lease, "staged", owner=owner)
                    time.sleep(0.005)  # or the first one may do everything on a busy machine
        done.put((owner, won))  # type: ignore[attr-defined]


def test_processes_share_200_scenes_without_taking_one_twice(url: str) -> None:
    with Ledger(url) as ledger:
        ledger.record_found(SINK, [work(f"s{i}") for i in range(200)])
        context = multiprocessing.get_context("fork")
        gate, done = context.Event(), context.Queue()
        ledger.close()
        processes = [context.Process(target=_work_all, args=(url, f"w{i}", gate, done)) for i in range(4)]
        for process in processes:
            process.start()
        gate.set()
        results = dict(done.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(timeout=60)
        won = [item for items in results.values() for item in items]
        assert sorted(won) == sorted(f"s{i}" for i in range(200))
        assert sum(bool(items) for items in results.values()) > 1, "one process did everything: nothing was raced"
        for owner, items in results.items():
            assert {row(ledger, item).measures["owner"] for item in items} <= {owner}
        assert {(r.fence, r.attempts) for r in ledger.rows()} == {(1, 1)}


def _discover(url: str, gate: object, done: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    with Ledger(url) as ledger:
        done.put(ledger.record_found(SINK, [work(f"s{i}") for i in range(1200)]))  # type: ignore[attr-defined]


def test_processes_opening_a_fresh_ledger_enter_each_item_once(url: str) -> None:
    context = multiprocessing.get_context("fork")
    gate, done = context.Event(), context.Queue()
    processes = [context.Process(target=_discover, args=(url, gate, done)) for _ in range(3)]
    for process in processes:
        process.start()
    gate.set()
    counts = [done.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sum(c.new for c in counts) == 1200
    assert sum(c.known for c in counts) == 2400
    with Ledger(url) as ledger:
        assert ledger.counts()[State.ELIGIBLE] == 1200
        assert len(ledger.why(key("s7"))) == 1


def _discover_again(url: str, collections: str, done: object) -> None:
    works = [in_collection(collection, f"s{i}") for collection in collections for i in range(200)]
    with Ledger(url) as ledger:
        try:
            for _ in range(100):
                ledger.record_found(SINK, works)
        except LedgerError as error:
            done.put(str(error))  # type: ignore[attr-defined]
        else:
            done.put("")  # type: ignore[attr-defined]


def test_discoveries_that_list_collections_in_another_order_do_not_lock_each_other_out(url: str) -> None:
    with Ledger(url) as ledger:
        ledger.record_found(SINK, [in_collection(collection, f"s{i}") for collection in "ab" for i in range(200)])
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    processes = [context.Process(target=_discover_again, args=(url, order, done)) for order in ("ab", "ba")]
    for process in processes:
        process.start()
    assert [done.get(timeout=60) for _ in processes] == ["", ""]
    for process in processes:
        process.join(timeout=60)


def test_asking_where_scenes_stand_does_not_wait_for_those_who_write(url: str) -> None:
    with Ledger(url) as ledger, Ledger(url) as other:
        ledger.record_found(SINK, [work(), in_collection("d", "b")])
        with ThreadPoolExecutor(1) as pool, ledger.unclaimable(key()):
            asked = [("c", "a"), ("d", "b"), ("d", "unknown")]
            rows = pool.submit(other.rows_of, SINK, asked)
            standing = pool.submit(lambda: list(other.standing(SINK, asked)))
            assert rows.result(timeout=10).keys() == {("c", "a"), ("d", "b")}
            assert {(stood.collection, stood.item_id) for stood in standing.result(timeout=10)} == {
                ("c", "a"),
                ("d", "b"),
            }


def test_discovery_of_10000_known_items_is_quick(url: str) -> None:
    items = [work(f"s{i}") for i in range(10_000)]
    with Ledger(url) as ledger:
        started = time.process_time()
        assert ledger.record_found(SINK, items) == FoundCounts(new=10_000)
        entered = time.process_time() - started
        started = time.process_time()
        assert ledger.record_found(SINK, items) == FoundCounts(known=10_000)
        looked_up = time.process_time() - started
    # process time: the machine may be busy; both are well below on one quiet core
    assert looked_up < 2, f"{looked_up:.2f} s"
    assert entered < 6, f"{entered:.2f} s"


def test_going_through_all_scenes_sees_each_once_whatever_happens_meanwhile(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pancrafter.ledger._PAGE", 2)
    ledger.record_found(SINK, [in_collection(name, item_id) for name in "ca" for item_id in "bdfe"])
    ledger.record_found("elsewhere", [in_collection("b", "x")])
    gone_through = ledger.each(SINK)
    seen = [next(gone_through)]
    ledger.mark_refused(SceneKey(sink=SINK, collection="c", item_id="e"), "by-hand", "cloudy")
    ledger.record_found(SINK, [in_collection("a", "a")])
    seen += gone_through
    assert [row.collection + row.item_id for row in seen] == ["ab", "ad", "ae", "af", "cb", "cd", "ce", "cf"]
    assert [row.item_id for row in seen if not row.claimable] == ["e"]


@contextmanager
def counted_steps(ledger: Ledger) -> Iterator[list[int]]:
    """One entry for every hundred steps that SQLite takes."""
    steps: list[int] = []
    with ledger._transaction() as connection:
        connection.connection.driver_connection.set_progress_handler(lambda: steps.append(1), 100)
    yield steps


def test_going_through_all_scenes_costs_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pancrafter.ledger._PAGE", 10)
    costs = []
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger, counted_steps(ledger) as steps:
        for scenes in (range(300), range(300, 600)):
            ledger.record_found(SINK, [work(f"s{i}", day=31 - i % 31) for i in scenes])
            steps.clear()
            assert len(list(ledger.each(SINK))) == scenes.stop
            costs.append(len(steps))
    assert costs[1] < 3 * costs[0]


@pytest.mark.parametrize(
    "ask",
    [
        lambda ledger: ledger.rows(sink=SINK, order="newest", limit=3),
        lambda ledger: ledger.rows(order="newest", limit=3),
        lambda ledger: ledger.rows(states=["eligible", "dead"], order="newest", limit=3),
        lambda ledger: ledger.find("s7"),
        lambda ledger: ledger.find("s7", sink=SINK),
        lambda ledger: ledger.collections(SINK),
        lambda ledger: ledger.sweep(is_gone=lambda _: False).freed or [1],
    ],
)
def test_what_is_asked_often_does_not_cost_more_in_a_large_ledger(
    tmp_path: Path, ask: Callable[[Ledger], Sequence[object]]
) -> None:
    costs = []
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger, counted_steps(ledger) as steps:
        for scenes in (range(300), range(300, 900)):
            ledger.record_found(SINK, [work(f"s{i}", day=1 + i % 28) for i in scenes])
            steps.clear()
            assert ask(ledger)
            costs.append(len(steps))
    assert costs[1] <= costs[0] + 1


def test_scenes_are_found_by_their_name_in_all_sinks_and_collections(ledger: Ledger) -> None:
    for sink, collection in (("b", "y"), ("a", "z"), ("b", "x"), ("a", "x")):
        ledger.record_found(sink, [in_collection(collection, "s1"), in_collection(collection, "s2")])
    keys = [(row.key.sink, row.key.collection, row.key.item_id) for row in ledger.find("s1")]
    assert keys == [("b", "y", "s1"), ("a", "z", "s1"), ("b", "x", "s1"), ("a", "x", "s1")]
    assert [row.key.collection for row in ledger.find("s1", sink="b")] == ["y", "x"]
    assert ledger.find("s3") == ledger.find("s1", sink="c") == []
    assert (ledger.collections("a"), ledger.collections("c")) == (["x", "z"], [])


def test_the_newest_of_very_many_sinks_are_listed(ledger: Ledger) -> None:
    """SQLite takes 500 selects in one statement, and what it does with fewer grows with their square."""
    for number in range(510):
        ledger.record_found(f"sink-{number}", [work("s1", day=1 + number % 28)])
    assert ledger.rows(order="newest", limit=20) == ledger.rows(order="newest")[:20]


@pytest.mark.parametrize("order", ["newest", "oldest", "found"])
def test_scenes_of_some_sinks_and_states_are_in_the_order_of_all(ledger: Ledger, order: Order) -> None:
    assert ledger.rows(order=order, limit=3) == []
    days = (7, 3, 3, 9, 1, 5)
    for sink in ("elsewhere", SINK):
        ledger.record_found(sink, [work(f"s{i}", day=day) for i, day in enumerate(days)] + [refusal("r")])
    ledger.mark_refused(key("s1"), "by-hand", "cloudy")
    confirm(ledger, "s3")
    everything = ledger.rows(order=order)
    of_sink = ledger.rows(sink=SINK, order=order)
    assert len(everything) == 2 * len(of_sink) == 14
    states = {State.REFUSED, State.CONFIRMED}
    for limit in (1, 3, 7, 9):
        assert ledger.rows(order=order, limit=limit) == everything[:limit]
        assert ledger.rows(sink=SINK, order=order, limit=limit) == of_sink[:limit]
        assert (
            ledger.rows(states=states, order=order, limit=limit)
            == [row for row in everything if row.state in states][:limit]
        )
    assert ledger.rows(states=[], order=order, limit=3) == []
    assert ledger.rows(sink=SINK, collection="other", order=order, limit=3) == []


# --- versions -------------------------------------------------------------------------------------------------------


def test_version_1_ledger_is_upgraded_and_equals_a_fresh_one(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with Ledger(url) as ledger:
        ledger.record_found(SINK, [work("a")])
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE look"))
        connection.execute(sa.text("DROP TABLE catalog"))
        connection.execute(sa.text("UPDATE ledger_version SET version = 1"))
    with Ledger(url) as ledger:
        assert [r.key.item_id for r in ledger.rows()] == ["a"]
        ledger.note_look(SINK, "https://key@stac.example.org/?token=hidden", datetime.now(UTC), "1 published")
        assert ledger.last_look(SINK, "https://key@stac.example.org/?token=hidden") is not None
        assert ledger.last_look("elsewhere", "https://key@stac.example.org/?token=hidden") is None
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT max(version) FROM ledger_version")).scalar_one() == SCHEMA_VERSION
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        kept = str(connection.execute(sa.text("SELECT source FROM look")).scalar_one())
    engine.dispose()
    assert "hidden" not in kept
    assert "key" not in kept


def test_ledger_of_a_newer_version_is_refused_untouched(url: str) -> None:
    with Ledger(url):
        pass
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE ledger_version SET version = 99"))
    with pytest.raises(LedgerError, match=r"version 99, this pancrafter knows versions up to \d+; update pancrafter"):
        Ledger(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT max(version) FROM ledger_version")).scalar_one() == 99
    engine.dispose()


def test_a_question_mark_in_the_state_folder_is_refused_only_where_the_ledger_lies_there(tmp_path: Path) -> None:
    folder = str(tmp_path / "what?")
    with pytest.raises(LedgerError, match=r"state folder .*/what\?: holds a question mark"):
        open_ledger(Settings(state_dir=folder))
    open_ledger(Settings(state_dir=folder, ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}")).close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ledger.db", "what?"]
