"""The morning report: one static HTML page beside the output catalog, without a server, scripts from elsewhere or CDN.

What was published (map, verdicts, figures, cost, before/after slider), what is held, failed or refused and the command
that goes on from there. Pictures are the items' own assets, by relative address.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from pancrafter.catalog_links import TITLE, extent_box, item_name
from pancrafter.changes import ChangeFeed
from pancrafter.ledger import Ledger
from pancrafter.states import State, Stuck
from pancrafter.types import Json

if TYPE_CHECKING:
    from pancrafter.publish import StaticSink

REPORT = "report.html"
MOST_SHOWN = 200
"""Scenes with a row and a slider, and as many with a reason; further ones are counted only."""

_PANELS = ("overview", 3, 4, 26)  # asset, panels side by side, gap and label height of pancrafter.preview, pixels
_COLOURS = {"pass": "#2b7d48", "fallback": "#8f6400", "released": "#8e44a5"}
_FIGURES = ("consistency ERGAS", "HQNR", "gain", "Mpx", "seconds")
_MAP_PX = (920, 340)
_GOES_ON = {
    State.HELD: ("held for a person", "pancrafter held release|reject {key} --reason TEXT"),
    State.DEAD: ("failed", "pancrafter ledger redrive {key}"),
    State.ELIGIBLE: ("waiting for another try", "pancrafter ledger why {key}"),
    State.FOUND: ("waiting for the rest of its scene", "pancrafter ledger why {key}"),
    State.REFUSED: ("refused", "pancrafter ledger why {key}"),
}
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0;background:#f4f5f6;color:#1d2329}main{max-width:960px;margin:auto;
padding:20px}h1{font-size:24px;margin:0}h2{font-size:18px;margin:28px 0 8px}.counts b{font-size:22px;margin-right:4px}
.counts span{display:inline-block;margin:10px 26px 10px 0}svg{width:100%;background:#e8eef2;border:1px solid #cdd6dc}
table{border-collapse:collapse;width:100%;background:#fff}td,th{padding:5px 8px;border-bottom:1px solid #e2e6e9;
text-align:left;vertical-align:top}th{font-weight:600;background:#eef1f3}.n{text-align:right}td.n{white-space:nowrap}
td{overflow-wrap:anywhere;min-width:6.2em}td:first-child{min-width:18em}td.n{min-width:0}
.v{display:inline-block;padding:0 8px;border-radius:9px;color:#fff;font-size:13px}code{background:#e9edf0;
padding:1px 4px;font-size:13px}
.scene{display:inline-block;margin:0 18px 20px 0;vertical-align:top;width:420px}
.cut{position:relative;width:420px;aspect-ratio:1;overflow:hidden;background:#181818}.cut div{position:absolute;inset:0;
background-repeat:no-repeat}.cut .after{clip-path:inset(0 0 0 var(--at,50%))}.cut i{position:absolute;top:0;bottom:0;
left:var(--at,50%);width:2px;background:#fff}.cut em{position:absolute;top:6px;padding:0 7px;background:#0009;
color:#fff;
font-style:normal;font-size:12px}input[type=range]{width:420px;margin:4px 0}small{color:#5b6670}
@media(max-width:960px){table{display:block;overflow-x:auto}}
@media(max-width:700px){tr:first-child{display:none}tr{display:block;padding:6px 0;border-bottom:1px solid #e2e6e9}
td,td:first-child{display:inline-block;min-width:0;padding:2px 8px;border:0}td:not(.n):is(:first-child,:last-child)
{display:block}td.n::before{content:attr(data-of) " ";color:#5b6670}.scene{zoom:.75}svg text{font-size:24px}}
"""


def write_report(
    sink: StaticSink,
    *,
    ledger: Ledger | None = None,
    since: datetime | None = None,
    stopped: bool = False,
) -> str:
    """Write the page of everything announced since a moment, and of scenes stuck since; returns its address.

    Args:
        sink: The output catalog.
        ledger: Knows the scenes for this sink; without it only published ones are told.
        since: Earliest moment; None: from the beginning.
        stopped: The run that the page is about ended before its work was done.

    Raises:
        SinkError: The catalog cannot be read or the page not written.
        LedgerError: The ledger cannot be read.
    """
    left_out, announced = ChangeFeed(sink.store).newest("new", since)
    latest: dict[tuple[str, str], None] = {}  # an item that became current again was announced again
    for change in announced:
        latest[change.collection, change.item_id] = None
        left_out -= 1
        if len(latest) == MOST_SHOWN:
            break
    shown = [sink.item(*product) for product in reversed(latest) if sink.exists(*product)]
    stuck = Stuck() if ledger is None else ledger.stuck(sink.uri, _GOES_ON, since=since, limit=MOST_SHOWN)
    page = report_page(shown, stuck, since=since, stopped=stopped, left_out=left_out)
    sink.store.write(REPORT, page.encode(), "text/html")
    return sink.store.address(REPORT)


def report_page(
    items: Sequence[Json],
    stuck: Stuck,
    *,
    since: datetime | None,
    stopped: bool = False,
    left_out: int = 0,
) -> str:
    """The page as text; pure, so that it can be looked at and tested without a catalog."""
    period = f"since {since:%Y-%m-%d %H:%M} UTC" if since else "from the beginning"
    parts = [
        f"<h1>{TITLE}</h1>",
        f'<small>{period}, written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; <a href="catalog.json">catalog</a></small>',
        "<p><b>The run stopped before its end</b>; its log says why. Running it again goes on.</p>" if stopped else "",
        _counts(items, stuck, left_out),
        _map(items),
        "<h2>Published</h2>" + _table(items) if items else "",
        "<h2>Needs a look</h2>" + _stuck_table(stuck) if stuck.rows else "",
        "<h2>Before and after</h2>" + "".join(_slider(item) for item in items) if items else "",
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{TITLE}</title><style>{_STYLE}</style><main>{''.join(parts)}</main></html>\n"
    )


def _counts(items: Sequence[Json], stuck: Stuck, left_out: int) -> str:
    verdicts = Counter(_verdict(item) for item in items)
    of = f" of the last {len(items)}" if left_out else ""
    costs = [item["properties"].get("pancrafter:cost", {}) for item in items]
    figures: list[tuple[object, str]] = [
        (len(items) + left_out, "published"),
        *((count, name + of) for name, count in verdicts.items() if name != "pass"),
        *([(old, f"superseded since{of}")] if (old := sum(map(_is_superseded, items))) else []),
        *((count, _GOES_ON[state][0]) for state, count in stuck.counts.items()),
        (f"{sum(_mpx(item) for item in items):.1f}", f"Mpx{of}"),
        (f"{sum(cost.get('seconds', 0) for cost in costs) / 60:.1f}", f"minutes of work{of}"),
        (f"{sum(cost.get('bytes_read') or 0 for cost in costs) / 1e6:.1f}", f"MB read{of}"),
    ]
    return '<p class="counts">' + "".join(f"<span><b>{n}</b>{escape(str(name))}</span>" for n, name in figures) + "</p>"


def _polygon(points: Sequence[str], colour: str) -> str:
    return f'<polygon points="{" ".join(points)}" fill="{colour}55" stroke="{colour}"/>'


def _map(items: Sequence[Json]) -> str:
    """Footprints on a plain longitude and latitude frame, each with a dot so that small ones are seen."""
    boxes = [extent_box(item) for item in items if item.get("bbox")]
    if not boxes:
        return ""
    west, south = (min(box[k] for box in boxes) for k in (0, 1))
    east, north = (max(box[k] for box in boxes) for k in (2, 3))
    margin = max(east - west, north - south, 0.02) * 0.15
    west, south, east, north = west - margin, south - margin, east + margin, north + margin
    width, height = _MAP_PX
    squeeze = math.cos(math.radians((south + north) / 2))
    scale = min(width / ((east - west) * squeeze), height / (north - south))
    left, top = (width - (east - west) * squeeze * scale) / 2, (height - (north - south) * scale) / 2

    def place(lon: float, lat: float) -> str:
        return f"{left + (lon - west) * squeeze * scale:.1f},{top + (north - lat) * scale:.1f}"

    shapes = []
    for item in items:
        colour, name = _COLOURS.get(_verdict(item), "#777"), escape(item["properties"]["title"])
        parts = item["geometry"]["coordinates"]  # two where the footprint is cut at the antimeridian
        rings = [part[0] for part in parts] if item["geometry"]["type"] == "MultiPolygon" else parts[:1]
        lons, lats = zip(*(point[:2] for point in rings[0]), strict=True)
        x, y = place((min(lons) + max(lons)) / 2, (min(lats) + max(lats)) / 2).split(",")
        drawn = "".join(_polygon([place(lon, lat) for lon, lat, *_ in ring], colour) for ring in rings)
        shapes.append(
            f'<a href="#{escape(item["id"])}"><title>{name}</title>'
            f"{drawn}"
            f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/></a>'
        )
    corners = (
        f'<text x="8" y="{height - 8}" font-size="12">{south:.3f}, {west:.3f} to {north:.3f}, {east:.3f} '
        "(latitude, longitude)</text>"
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="footprints">{"".join(shapes)}{corners}</svg>'


def _table(items: Sequence[Json]) -> str:
    rows = []
    for item in items:
        p, verdict = item["properties"], _verdict(item)
        old = f" {_badge('superseded')}" if _is_superseded(item) else ""
        gate = p.get("pancrafter:gate", {})
        why = f"<br><small>{escape(gate.get('reason', ''))}</small>" if gate.get("reason") else ""
        cells = (
            (p.get("pancrafter:consistency_ergas"), "{:.2f}"),
            (p.get("pancrafter:hqnr"), "{:.3f}"),
            (p.get("pancrafter:gain_over_classical"), "{:+.1%}"),
            (_mpx(item), "{:.2f}"),
            (p.get("pancrafter:cost", {}).get("seconds"), "{:.0f}"),
        )
        numbers = "".join(
            f'<td class="n" data-of="{name}">{"-" if value is None else form.format(value)}</td>'
            for name, (value, form) in zip(_FIGURES, cells, strict=True)
        )
        href = escape(item_name(item["collection"], item["id"]))
        rows.append(
            f'<tr><td><a href="{href}">{escape(p["pancrafter:source"]["item_id"])}</a>{why}</td>'
            f"<td>{escape(p['pancrafter:sensor'])}</td><td>{_badge(verdict)}{old}</td>{numbers}</tr>"
        )
    return _as_table(("scene", "sensor", "verdict"), rows, _FIGURES)


def _stuck_table(stuck: Stuck) -> str:
    lines = []
    for row in stuck.rows:
        name, command = _GOES_ON[row.state]
        lines.append(
            f"<tr><td>{escape(str(row.key))}</td><td>{escape(name)}</td><td>{escape(row.reason or '')}"
            f"<br><code>{escape(command.format(key=shlex.quote(str(row.key))))}</code></td></tr>"
        )
    left_out = sum(stuck.counts.values()) - len(stuck.rows)
    more = f"<p>and {left_out} more: <code>pancrafter ledger list</code></p>" if left_out else ""
    return _as_table(("scene", "state", "reason, and how to go on"), lines) + more


def _as_table(words: Sequence[str], rows: Sequence[str], numbers: Sequence[str] = ()) -> str:
    """Rows under the headings of columns of words and, to the right, of numbers."""
    head = "".join(f"<th>{escape(name)}</th>" for name in words)
    head += "".join(f'<th class="n">{escape(name)}</th>' for name in numbers)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _slider(item: Json) -> str:
    """MS and sharpened on top of each other: both are panels of the item's comparison picture."""
    key, panels, gap, label = _PANELS
    asset = item["assets"].get(key)
    if asset is None or "proj:shape" not in asset:
        return ""
    height, width = asset["proj:shape"]
    panel, tall = (width - (panels - 1) * gap) / panels, height - label
    href = escape(f"{item['collection']}/{item['id']}/{asset['href'].removeprefix('./')}", quote=True)
    zoom = 420 / panel
    layers = "".join(
        f'<div class="{name}" style="background-image:url(&quot;{href}&quot;);'
        f"background-size:{width * zoom:.1f}px {height * zoom:.1f}px;"
        f'background-position:-{number * (panel + gap) * zoom:.1f}px -{label * zoom:.1f}px"></div>'
        for number, name in ((1, "before"), (2, "after"))
    )
    move = "this.previousElementSibling.style.setProperty('--at',this.value+'%')"
    title = escape(item["properties"]["title"])
    return (
        f'<div class="scene" id="{escape(item["id"])}"><div class="cut" style="aspect-ratio:{panel:.0f}/{tall:.0f}">'
        f'{layers}<i></i><em style="left:6px">MS</em><em style="right:6px">sharpened</em></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="before and after" oninput="{move}">'
        f"<br>{_badge(_verdict(item))} <small>{title}</small></div>"
    )


def _badge(verdict: str) -> str:
    return f'<span class="v" style="background:{_COLOURS.get(verdict, "#777")}">{escape(verdict)}</span>'


def _verdict(item: Json) -> str:
    properties = item["properties"]
    default = "fallback" if properties.get("pancrafter:fallback") else "pass"
    return str(properties.get("pancrafter:gate", {}).get("verdict", default))


def _is_superseded(item: Json) -> bool:
    return bool(item["properties"].get("deprecated"))


def _mpx(item: Json) -> float:
    height, width = item["properties"].get("proj:shape", (0, 0))
    return float(height * width / 1e6)
