"""Tables as a person reads them, and JSON as a program does."""

from __future__ import annotations

import io
import json
import math
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from pancrafter.states import LedgerRow, SceneKey, State
from pancrafter.steps import Outcome
from pancrafter.summary import (
    WIDTH,
    catalog_href,
    outcome_table,
    outcomes_json,
    print_ledger,
    print_refusals,
    print_summary,
    row_table,
    shorten,
    state_line,
    truth_methods_table,
    truth_table,
    verdict_line,
    with_room,
)
from pancrafter.types import Quality, TruthScores

QUALITY = Quality(
    consistency_ergas=0.6149,
    consistency_sam_deg=0.4,
    d_lambda=0.02,
    d_s=0.03,
    hqnr=0.9514,
    residual_shift_px=0.12,
    reduced_ergas=2.1,
    best_classical="mtf-glp-hpm",
    best_classical_reduced_ergas=2.6,
    gain_over_classical=0.1923,
    clipped_share=0.0001,
    invalid_share=0.1,
)
TRUTH = (
    TruthScores(method="pan-crafter", ergas=1.0, sam_deg=1.5, q2n=0.98),
    TruthScores(method="gsa", ergas=1.25, sam_deg=1.6, q2n=0.97),
    TruthScores(method="bt-h", ergas=1.6, sam_deg=1.7, q2n=0.96),
    TruthScores(method="exp", ergas=4.0, sam_deg=1.8, q2n=0.82),
)
LONG = "WV03_20250412T101512_10400100A5C21E00_MUL_AND_PAN_P001"
GOOD = Outcome(
    key=f"maxar/{LONG}",
    sensor="worldview-3",
    verdict="published",
    mpx=2.5,
    seconds=83.44,
    mpx_per_s=0.0312,
    quality=QUALITY,
    truth=TRUTH,
    item_href="/sink/x/item.json",
    picture_href="/sink/x/overview.png",
)
FAILED = Outcome(
    key="maxar/S2",
    sensor="geoeye-1",
    verdict="failed",
    reason="scene maxar/S2 asset ms: window [rows 0..9] cannot be read; fetch it again",
)
REFUSED = Outcome(key="maxar/S3", sensor="", verdict="refused", reason="found platform 'x', expected another")


def _rendered(thing: object, width: int = WIDTH) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(thing)
    return out.getvalue()


def _summary(outcomes: list[Outcome], width: int = 80, **options: bool) -> str:
    out = io.StringIO()
    print_summary(with_room(Console(file=out, width=width, **options)), outcomes, "sink")
    return out.getvalue()


def _line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


# --- runs -----------------------------------------------------------------------------------------------------------


def test_outcome_row_holds_what_was_measured() -> None:
    row = _line(_rendered(outcome_table([GOOD])), "WV03").split()
    assert row[1:] == ["worldview-3", "published", "2.50", "83.4", "0.031", "0.61", "0.951", "+19.2%", "mtf-glp-hpm"]


def test_outcome_without_figures_shows_none() -> None:
    row = _line(_rendered(outcome_table([FAILED])), "S2").split()
    assert row == ["S2", "geoeye-1", "failed", *"------"]


def test_scene_without_a_reduced_assessment_says_so() -> None:
    """It may be small, flat, or without a large enough area of valid pixels."""
    unmeasured = QUALITY.model_copy(update={"gain_over_classical": None, "best_classical": None})
    assert "not measured" in _rendered(outcome_table([GOOD.model_copy(update={"quality": unmeasured})]))


@pytest.mark.parametrize("width", [100, 110, 120])
def test_tables_fit_and_keep_every_figure(width: int) -> None:
    worst = GOOD.model_copy(update={"verdict": "retry later", "mpx": 1234.56, "seconds": 86400.0})
    text = _summary([worst, FAILED, REFUSED], width, force_terminal=True)
    table = re.sub(r"\x1b\[[0-9;]*m", "", text.split("output catalog")[0])
    assert max(map(len, table.splitlines())) <= width
    for figure in ("1234.56", "86400.0", "0.031", "0.61", "0.951", "+19.2%", "mtf-glp-hpm", "retry later"):
        assert figure in table


def test_ids_are_shortened_once_and_in_the_middle() -> None:
    shown = _line(_rendered(outcome_table([GOOD]), 100), "WV03").split()[0]
    assert shown.count("…") == 1
    head, tail = shown.split("…")
    assert LONG.startswith(head)
    assert LONG.endswith(tail)
    assert len(shown) == 21


@pytest.mark.parametrize("width", [1, 2, 5, 6, 10, 11])
def test_shortened_text_has_the_width(width: int) -> None:
    assert len(shorten("abcdefghijk", width)) == width
    assert shorten("abcdefghijk", 11) == "abcdefghijk"


def test_reasons_are_whole_and_brackets_are_no_markup() -> None:
    text = " ".join(_summary([GOOD, FAILED]).split())
    assert "asset ms: window [rows 0..9] cannot be read; fetch it again" in text
    assert "scene maxar/S2" not in text


def test_truth_compares_with_the_best_classical_method_and_with_upsampling() -> None:
    lines = _rendered(truth_table([GOOD, FAILED])).splitlines()
    rows = [line.split() for line in lines if "0.9" in line or "0.8" in line]
    assert rows == [
        [shorten(LONG, 21), "pan-crafter", "1.000", "1.500", "0.9800", "(published)"],
        ["gsa", "1.250", "1.600", "0.9700", "20.0%", "lower"],
        ["exp", "4.000", "1.800", "0.8200", "75.0%", "lower"],
    ]


def test_a_classical_result_is_not_compared_with_itself() -> None:
    fallback = GOOD.model_copy(update={"verdict": "fallback", "truth": (TRUTH[2], TRUTH[1], TRUTH[2], TRUTH[3])})
    text = _rendered(truth_table([fallback]))
    assert text.count("bt-h") == 1
    assert "28.0% higher" in _line(text, " " * 23 + "gsa")


def test_all_methods_are_listed_with_their_ergas() -> None:
    lines = _rendered(truth_methods_table([GOOD])).splitlines()
    assert lines[-1].split()[1:] == ["1.000", "1.250", "1.600", "4.000"]
    assert [word for line in lines[1:3] for word in line.split()] == ["pan-", "scene", "crafter", "gsa", "bt-h", "exp"]


def test_truth_tables_need_truth() -> None:
    assert truth_table([FAILED, REFUSED]) is None
    assert truth_methods_table([FAILED, REFUSED]) is None


def test_summary_ends_with_counts_and_places() -> None:
    lines = _summary([REFUSED, FAILED, GOOD]).splitlines()
    assert lines[-4] == "1 published, 1 refused, 1 failed; 2.50 Mpx in 83 s"
    assert lines[-3].startswith("output catalog: /")
    assert lines[-3].endswith("/sink/catalog.json")
    assert lines[-2] == "before/after:   /sink/x/overview.png"
    assert lines[-1].startswith("failed: see ")


def test_many_refusals_are_counted_not_listed() -> None:
    refused = [REFUSED.model_copy(update={"key": f"maxar/R{n:04}"}) for n in range(3000)]
    text = _summary([*refused, GOOD])
    assert len(text.splitlines()) < 90
    assert "2980 more refused: see `pancrafter ledger list --state refused`" in text
    assert "1 published, 3000 refused" in text
    out = io.StringIO()
    print_refusals(Console(file=out), refused)
    assert "2980 more refused" in out.getvalue()


def test_what_waits_for_a_person_is_followed_by_how_to_go_on() -> None:
    held = FAILED.model_copy(update={"verdict": "held"})
    assert not {"held:", "failed:"} & set(_summary([GOOD]).split())
    assert _summary([held, FAILED]).splitlines()[-2:] == [
        "held: see `pancrafter held list`, then `pancrafter held release|reject SCENE --reason TEXT`",
        "failed: see `pancrafter ledger list --state dead`; after a fix, `pancrafter ledger redrive`",
    ]


def test_pipes_get_room_for_tables() -> None:
    out = io.StringIO()
    print_summary(with_room(Console(file=out, width=80)), [GOOD], "sink")
    assert "+19.2% mtf-glp-hpm" in out.getvalue()


def test_counts_of_nothing() -> None:
    assert verdict_line([]) == "nothing to do"


def test_catalog_address() -> None:
    assert catalog_href("s3://bucket/prefix/") == "s3://bucket/prefix/catalog.json"
    assert catalog_href("/data/out") == "/data/out/catalog.json"


def test_json_is_plain_and_complete() -> None:
    spoiled = GOOD.model_copy(update={"quality": QUALITY.model_copy(update={"hqnr": math.nan})})
    first, second = outcomes_json([spoiled, FAILED])
    text = json.dumps([first, second], allow_nan=False)
    assert json.loads(text)[0]["quality"]["hqnr"] is None
    assert first["truth"][1] == {"method": "gsa", "ergas": 1.25, "sam_deg": 1.6, "q2n": 0.97}
    assert Outcome.model_validate(second) == FAILED


# --- ledger ---------------------------------------------------------------------------------------------------------


def test_states_in_one_line() -> None:
    counts = dict.fromkeys(State, 0)
    assert state_line(counts) == "0 scenes known"
    assert state_line(counts | {State.DEAD: 1}) == "1 scene known: 1 dead"
    many = counts | {State.REFUSED: 2, State.CONFIRMED: 3, State.ELIGIBLE: 1, State.DEAD: 1}
    assert state_line(many) == "7 scenes known: 3 confirmed, 1 eligible, 2 refused, 1 dead"


def ledger_row(item_id: str, *, sink: str = "s", **known: Any) -> LedgerRow:
    now = datetime(2025, 5, 1, tzinfo=UTC)
    values: dict[str, Any] = dict.fromkeys(LedgerRow.model_fields) | {
        "key": SceneKey(sink=sink, collection="worldview-3", item_id=item_id),
        "sensor": "worldview-3",
        "acquired": "2025-05-01T00:00:00Z",
        "state": State.REFUSED,
        "attempts": 0,
        "fence": 1,
        "measures": {},
        "created": now,
        "updated": now,
        "code": "no-pan",
        "reason": "found no PAN asset; " * 8,
    }
    return LedgerRow.model_validate(values | known)


@pytest.mark.parametrize(("width", "terminal", "whole"), [(80, False, True), (200, True, True), (120, True, False)])
def test_keys_of_the_ledger_are_whole_where_there_is_room(width: int, *, terminal: bool, whole: bool) -> None:
    out = io.StringIO()
    print_ledger(Console(file=out, width=width, force_terminal=terminal), [ledger_row(LONG), ledger_row("S2")])
    assert (f"worldview-3/{LONG} " in out.getvalue()) == whole
    assert ("worldview-3/S2 " in out.getvalue()) == whole
    assert out.getvalue().count("\n") < 20


@pytest.mark.parametrize(("other", "listed"), [("/data/before", True), ("/data/now", False)])
def test_sinks_are_listed_where_there_are_several(other: str, *, listed: bool) -> None:
    out = io.StringIO()
    print_ledger(Console(file=out), [ledger_row("S2", sink="/data/now"), ledger_row("S2", sink=other)])
    assert all((sink in out.getvalue()) == listed for sink in ("/data/now", other))


def test_the_ledger_says_once_which_scene_it_is() -> None:
    out = io.StringIO()
    row = ledger_row("S2", code="InvalidSceneError", reason="scene worldview-3/S2 asset ms: is damaged")
    print_ledger(Console(file=out, width=300), [row])
    assert out.getvalue().count("worldview-3/S2") == 1
    assert "InvalidSceneError: asset ms: is damaged" in out.getvalue()


def test_row_lists_nested_measures_one_by_one() -> None:
    measures = {"quality": {"hqnr": 0.123456789}, "truth": [{"method": "exp", "ergas": 2.0}]}
    row = ledger_row("S1", reason=None, measures=measures)
    lines = [line.split(maxsplit=1) for line in _rendered(row_table(row)).splitlines()]
    found = {name: value.strip() for name, value in lines}
    assert found["item_id"] == "S1"
    assert found["measures.quality.hqnr"] == "0.12346"
    assert found["measures.truth"] == "method exp, ergas 2"
    assert "reason" not in found
