"""Tables for people and plain JSON for programs about outcomes, the ledger, sensors and plans.

Nothing here decides or measures anything: it takes finished records and says what they hold.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from pancrafter.types import Json
from pancrafter.words import counted

if TYPE_CHECKING:
    from rich.console import Console

    from pancrafter.census import Census, Difference
    from pancrafter.judge import Judgement
    from pancrafter.plan import Plan
    from pancrafter.sensors import SensorContract
    from pancrafter.states import Event, LedgerRow, State
    from pancrafter.steps import Outcome
    from pancrafter.types import TruthScores


WIDTH = 118
"""Least columns for a table that goes into a file or pipe."""

MOST_DIFFERENCES = 200
"""Differences of a census that are shown, further ones are counted: there is one for each scene that waits."""

REFUSED_HINT = "see `pancrafter ledger list --state refused`"

_HELD_HINT = "held: see `pancrafter held list`, then `pancrafter held release|reject SCENE --reason TEXT`"
_FAILED_HINT = "failed: see `pancrafter ledger list --state dead`; after a fix, `pancrafter ledger redrive`"
_MOST_REFUSED = 20
_ID_WIDTH = 21
_HEADER_WIDTH = 8
_BESIDE_KEYS = 100
"""What the columns of the ledger take beside keys, with 30 characters for reasons."""
_SINK_WIDTH = 40
_MOST_PICTURES = 8
_UPSAMPLING = "exp"
_NONE = "-"
_STYLES = {
    "published": "green",
    "fallback": "yellow",
    "held": "magenta",
    "refused": "dim",
    "waiting": "dim",
    "failed": "bold red",
    "retry later": "red",
}
_STATE_ORDER = {"confirmed": 0, "held": 2, "refused": 3, "dead": 4}
_STATE_STYLES = {"confirmed": "green", "dead": "bold red", "held": "yellow", "refused": "dim"}


def with_room(console: Console, width: int = WIDTH) -> Console:
    """The console with room for tables where it is a file or pipe, whose width is only a guess."""
    if not console.is_terminal:
        console.width = max(console.width, width)
    return console


# --- a run ----------------------------------------------------------------------------------------------------------


def print_summary(console: Console, outcomes: Sequence[Outcome], sink: str) -> None:
    """Print what a run did: its tables, one line of counts, where catalog and pictures lie, and how to go on."""
    _print_tables(console, outcomes, outcome_table, reason_table, truth_table, truth_methods_table)
    _print_line(console, verdict_line(outcomes))
    _print_line(console, f"output catalog: {catalog_href(sink)}")
    pictures = [outcome.picture_href for outcome in outcomes if outcome.picture_href]
    for href in pictures[:_MOST_PICTURES]:
        _print_line(console, f"before/after:   {href}")
    if len(pictures) > _MOST_PICTURES:
        _print_line(console, f"                and {len(pictures) - _MOST_PICTURES} more: asset overview of each item")
    verdicts = {outcome.verdict for outcome in outcomes}
    print_next(console, held="held" in verdicts, failed="failed" in verdicts)


def print_next(console: Console, *, held: bool, failed: bool) -> None:
    """Print what a person can do about scenes that wait for one."""
    if held:
        _print_line(console, _HELD_HINT)
    if failed:
        _print_line(console, _FAILED_HINT)


def print_refusals(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print why items were refused, the first of them at least."""
    _print_tables(console, outcomes, reason_table)


def _print_tables(
    console: Console, outcomes: Sequence[Outcome], *tables: Callable[[Sequence[Outcome]], Table | None]
) -> None:
    """Tables of all scenes that were worked on, then a few refused ones: an archive may hold thousands of them."""
    refused = [outcome for outcome in outcomes if outcome.turned_away]
    shown = [outcome for outcome in outcomes if not outcome.turned_away] + refused[:_MOST_REFUSED]
    for made in (table(shown) for table in tables):
        if made is not None:
            console.print(made, soft_wrap=False)
            console.print()
    if len(shown) < len(outcomes):
        _print_line(console, f"{len(outcomes) - len(shown)} more refused: {REFUSED_HINT}")


def catalog_href(sink: str) -> str:
    """Address of the root document of an output catalog."""
    if "://" in sink:
        return f"{sink.rstrip('/')}/catalog.json"
    return str(Path(sink).absolute() / "catalog.json")


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """One row per scene: what became of it, what it cost and how good it is."""
    table = _table("Scenes")
    _add_id_column(table)
    table.add_column("sensor", overflow="ellipsis", min_width=6)
    table.add_column("verdict", no_wrap=True)
    for header in ("Mpx", "seconds", "Mpx/s", "consist.\nERGAS", "HQNR"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("gain over\nbest classical", min_width=12)
    for outcome in outcomes:
        quality = outcome.quality
        table.add_row(
            _id(outcome.key),
            Text(outcome.sensor or _NONE),
            Text(outcome.verdict, style=_STYLES.get(outcome.verdict, "")),
            _number(outcome.mpx, 2),
            _number(outcome.seconds, 1),
            _number(outcome.mpx_per_s, 3),
            _number(quality.consistency_ergas if quality else None, 2),
            _number(quality.hqnr if quality else None, 3),
            _gain(quality.gain_over_classical, quality.best_classical) if quality else Text(_NONE),
        )
    return table


def reason_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Why scenes were refused, failed, or got the classical result; None where all went as hoped."""
    explained = [outcome for outcome in outcomes if outcome.reason]
    if not explained:
        return None
    table = _table("Reasons")
    _add_id_column(table)
    table.add_column("verdict", no_wrap=True)
    table.add_column("reason", ratio=1, overflow="fold")
    for outcome in explained:
        style = _STYLES.get(outcome.verdict, "")
        table.add_row(_id(outcome.key), Text(outcome.verdict, style=style), Text(_of(outcome.key, outcome.reason)))
    return table


def truth_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Simulated scenes: the published result, the best classical one and plain up-sampling against the truth."""
    known = [outcome for outcome in outcomes if outcome.truth]
    if not known:
        return None
    table = _table("Against the truth (simulated scenes, full resolution)")
    _add_id_column(table)
    table.add_column("method", no_wrap=True)
    for header in ("ERGAS", "SAM °", "Q2n"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("ERGAS of the published result is", no_wrap=True)
    for outcome in known:
        ours, rest = outcome.truth[0], [score for score in outcome.truth[1:] if score.method != outcome.truth[0].method]
        shown = [(ours, "bold", "(published)")]
        shown += [(score, "", _lead(ours, score)) for score in _best_and_upsampled(rest)]
        for row, (score, style, lead) in enumerate(shown):
            table.add_row(
                _id(outcome.key) if row == 0 else Text(),
                Text(score.method, style=style),
                _number(score.ergas, 3, style),
                _number(score.sam_deg, 3, style),
                _number(score.q2n, 4, style),
                Text(lead),
                end_section=row == len(shown) - 1,
            )
    return table


def truth_methods_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Simulated scenes: ERGAS of every method against the truth, the lowest of each scene in bold."""
    known = [outcome for outcome in outcomes if outcome.truth]
    methods = list(dict.fromkeys(score.method for outcome in known for score in outcome.truth))
    if not methods:
        return None
    table = _table("ERGAS against the truth, all methods")
    _add_id_column(table)
    for method in methods:
        family, _, variant = method.rpartition("-")
        header = f"{family}-\n{variant}" if len(method) > _HEADER_WIDTH and family else method
        table.add_column(header, justify="right", no_wrap=True)
    for outcome in known:
        ergas = {score.method: score.ergas for score in reversed(outcome.truth)}
        best = min(ergas.values())
        cells = (_number(ergas.get(method), 3, "bold" if ergas.get(method) == best else "") for method in methods)
        table.add_row(_id(outcome.key), *cells)
    return table


def verdict_line(outcomes: Sequence[Outcome]) -> str:
    """Counts in one line, like ``3 published, 1 failed; 4.20 Mpx in 81 s``."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    parts = [f"{counts[verdict]} {verdict}" for verdict in _STYLES if counts[verdict]]  # type: ignore[index]
    mpx, seconds = (sum(getattr(outcome, name) or 0 for outcome in outcomes) for name in ("mpx", "seconds"))
    cost = f"; {mpx:.2f} Mpx in {seconds:.0f} s" if seconds else ""
    return (", ".join(parts) or "nothing to do") + cost


def outcomes_json(outcomes: Sequence[Outcome]) -> list[Json]:
    """The outcomes as plain JSON values; NaN and infinities become null."""
    return [json.loads(outcome.model_dump_json()) for outcome in outcomes]


def _best_and_upsampled(scores: Sequence[TruthScores]) -> list[TruthScores]:
    """The best classical method and plain up-sampling, whichever of them are there."""
    classical = sorted((score for score in scores if score.method != _UPSAMPLING), key=lambda score: score.ergas)
    return [*classical[:1], *(score for score in scores if score.method == _UPSAMPLING)]


def _lead(ours: TruthScores, other: TruthScores) -> str:
    difference = 1 - ours.ergas / other.ergas if other.ergas else 0.0
    return f"{abs(difference):.1%} {'lower' if difference >= 0 else 'higher'}"


def _gain(gain: float | None, method: str | None) -> Text:
    if gain is None or method is None:
        return Text("not measured", style="dim")
    return Text(f"{gain:+.1%} {method}", style="green" if gain > 0 else "yellow")


# --- ledger ---------------------------------------------------------------------------------------------------------


def state_line(counts: Mapping[State, int]) -> str:
    """How many scenes are known and where they stand, like ``5 scenes known: 3 confirmed, 1 refused, 1 dead``."""
    ordered = sorted(counts.items(), key=lambda entry: _STATE_ORDER.get(entry[0].value, 1))
    parts = ", ".join(f"{count} {state.value}" for state, count in ordered if count)
    return f"{counted(sum(counts.values()), 'scene')} known" + (f": {parts}" if parts else "")


def print_ledger(console: Console, rows: Sequence[LedgerRow]) -> None:
    """One row per scene of the ledger, by the whole key that other commands take where there is room for it."""
    longest = max((len(str(row.key)) for row in rows), default=0)
    width = longest + _BESIDE_KEYS
    has_room = width <= with_room(console, width).width
    console.print(_ledger_table(rows, longest if has_room else None), soft_wrap=False)


def _ledger_table(rows: Sequence[LedgerRow], key_width: int | None) -> Table:
    table = _table()
    if key_width is None:
        _add_id_column(table)
    else:
        table.add_column("scene", no_wrap=True, min_width=key_width)
    several_sinks = len({row.key.sink for row in rows}) > 1
    if several_sinks:
        table.add_column("sink", overflow="fold", max_width=_SINK_WIDTH)
    table.add_column("sensor")
    table.add_column("acquired", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("tries", justify="right", no_wrap=True)
    table.add_column("updated (UTC)", no_wrap=True)
    table.add_column("reason", ratio=1, overflow="fold")
    for row in rows:
        reason = _of(str(row.key), row.reason or "")
        table.add_row(
            _id(str(row.key)) if key_width is None else Text(str(row.key)),
            *([Text(row.key.sink)] if several_sinks else []),
            Text(row.sensor or _NONE),
            Text((row.acquired or _NONE)[:10]),
            Text(row.state.value, style=_STATE_STYLES.get(row.state.value, "")),
            Text(str(row.attempts)),
            Text(f"{row.updated:%Y-%m-%d %H:%M}"),
            Text(shorten(f"{row.code}: {reason}" if row.code else reason, 160)),
        )
    return table


def row_table(row: LedgerRow) -> Table:
    """Everything the ledger knows about one scene, one field per line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in row_json(row).items():
        if name != "scene":
            for label, text in _flat(name, value):
                table.add_row(label, Text(text))
    if row.scene is not None:
        table.add_row("source item", Text(row.scene.source_href))
        table.add_row("assets", Text("\n".join(dict.fromkeys(a.href for a in (row.scene.pan, *row.scene.ms)))))
    return table


def row_json(row: LedgerRow) -> Json:
    """A row of the ledger as plain JSON, its key spread into ``sink``, ``collection`` and ``item_id``."""
    values: Json = json.loads(row.model_dump_json())
    return {**values.pop("key"), **values}


def events_table(events: Sequence[Event]) -> Table:
    """The history of one scene, oldest first."""
    table = _table()
    table.add_column("at (UTC)", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("what", ratio=1, overflow="fold")
    table.add_column("who", overflow="fold", max_width=24)
    for event in events:
        style = _STATE_STYLES.get(event.after.value, "")
        before = event.before.value if event.before else _NONE
        after = Text(event.after.value, style=style)
        table.add_row(f"{event.at:%Y-%m-%d %H:%M:%S}", before, after, Text(event.message), Text(event.who))
    return table


# --- sensors and plans ----------------------------------------------------------------------------------------------


def sensor_table(contracts: Mapping[str, SensorContract]) -> Table:
    """One row per sensor contract."""
    table = _table()
    table.add_column("name", no_wrap=True)
    table.add_column("title", overflow="fold")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("bands", overflow="fold")
    table.add_column("DN max", justify="right", no_wrap=True)
    table.add_column("sharpened by", no_wrap=True)
    for contract in contracts.values():
        table.add_row(
            contract.name,
            Text(contract.title),
            str(contract.ratio),
            Text(" ".join(band.name for band in contract.bands)),
            str(contract.dn_max),
            "classical only" if contract.weights == "none" else "network",
        )
    return table


def judgement_table(found: Mapping[str, Judgement]) -> Table:
    """One row per STAC document that was checked."""
    table = _table()
    for title in ("document", "verdict", "sensor", "reason"):
        table.add_column(title, overflow="fold", no_wrap=title == "verdict")
    for name, judgement in found.items():
        lines = [judgement.reason, *(f"+ {line}" for line in judgement.defects[1:])]
        table.add_row(Text(name), judgement.verdict, judgement.sensor or _NONE, Text("\n".join(lines)))
    return table


def plan_table(plan: Plan) -> Table:
    """What a run would do, by verdict."""
    table = _table()
    table.add_column("verdict", no_wrap=True)
    table.add_column("scenes", justify="right")
    table.add_column("meaning", overflow="fold")
    for line in plan.lines:
        style = "bold" if line.to_do else ""
        table.add_row(Text(line.verdict, style=style), Text(str(line.scenes), style=style), Text(line.meaning))
    return table


def print_census(console: Console, census: Census) -> None:
    """Print the counts of each place, the differences, a few of them at least, and the commands that mend them."""
    shown = shown_of(census)
    if shown:
        table = _table()
        table.add_column("noticed in", no_wrap=True)
        table.add_column("what", overflow="fold")
        table.add_column("differs", overflow="fold")
        for difference in shown:
            table.add_row(Text(difference.place), Text(difference.what), Text(difference.finding))
        console.print(table, soft_wrap=False)
        if left_out := len(census.differences) - len(shown):
            _print_line(console, f"{left_out} more: see `pancrafter census --json`")
        _print_line(console, "mend with:")
        for fix in dict.fromkeys(difference.fix for difference in shown):
            _print_line(console, f"  {fix}")
    states = ", ".join(f"{count} {state}" for state, count in census.ledger.items()) or "empty"
    window = "" if census.whole_source else " in the window"
    _print_line(console, f"source:  {counted(census.source_scenes, 'scene')}, {census.source_refused} refused{window}")
    _print_line(console, f"ledger:  {states}")
    _print_line(console, f"catalog: {counted(census.catalog_items, 'item')}")
    for note in census.notes:
        _print_line(console, f"note:    {note}")
    _print_line(console, "clean" if census.clean else counted(len(census.differences), "difference"))


def shown_of(census: Census) -> tuple[Difference, ...]:
    """The differences to show: of very many those that fewest others are mended with, as all that waits hides them."""
    if len(census.differences) <= MOST_DIFFERENCES:
        return census.differences
    alike = Counter(difference.fix for difference in census.differences)
    return tuple(sorted(census.differences, key=lambda difference: alike[difference.fix])[:MOST_DIFFERENCES])


# --- pieces ---------------------------------------------------------------------------------------------------------


def shorten(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters, the middle left out: the ends tell ids apart."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _add_id_column(table: Table) -> None:
    table.add_column("scene", no_wrap=True, min_width=_ID_WIDTH, max_width=_ID_WIDTH)


def _id(key: str) -> Text:
    """A scene's item id, shortened; the collection is left to details."""
    return Text(shorten(key.split("/", 1)[-1], _ID_WIDTH))


def _of(key: str, reason: str) -> str:
    """A reason without the scene that it is about, which stands beside it."""
    return reason.removeprefix(f"scene {key} ").removeprefix(f"scene {key}: ")


def _number(value: float | None, decimals: int, style: str = "") -> Text:
    return Text(_NONE if value is None or value != value else f"{value:.{decimals}f}", style=style)  # noqa: PLR0124 - NaN


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:  # Any: what JSON nests
    """A JSON value as labelled lines: ``measures.quality.hqnr 0.928``; nothing for what is null."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        for entry in value:
            yield name, ", ".join(f"{key} {_plain(inner)}" for key, inner in entry.items())
    elif value not in (None, ""):
        yield name, _plain(value)


def _plain(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _table(title: str | None = None) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def _print_line(console: Console, text: str) -> None:
    """A line without colours and line breaks of its own, so that addresses can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
