"""Nightly runs over many items, against ground truth: a STAC API on pgstac, and a static catalog over HTTP.

    python tests/benchmarks/bench_nightly.py [API_ITEMS] [STATIC_ITEMS]

Of every ten items five are scenes, four have no PAN, and one is the PAN half of a scene. Four scenes have files and are
sharpened and published; the others wait behind ``--limit``. Between the nights items arrive late (acquired long ago),
are replaced, and are sent again unchanged; MS halves arrive whose PAN is known since the first night. A hundredth of
the static items is broken, a hundredth is linked twice. The second night looks back by ``updated`` only. After each
night every item must be in the ledger once, in the right state. Each night is a process of its own, whose peak memory
is reported.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

Body = dict[str, Any]
Send = Callable[[Sequence[Body]], None]

REAL = 4
"""Scenes that have files; the first numbers."""

PER_CHILD = 100
COLLECTION = "bench"
ACQUIRED = datetime(2025, 1, 1, tzinfo=UTC)
FIRST_NIGHT = datetime(2026, 3, 1, tzinfo=UTC)
SECOND_NIGHT = FIRST_NIGHT + timedelta(days=1)
MS_BANDS = ("coastal", "blue", "green", "yellow", "red", "rededge", "nir08", "nir09")


def kind(number: int) -> str:
    """What the item with that number is."""
    kinds = ("scene",) * 5 + ("no PAN",) * 4 + ("half",)
    return "files" if number < REAL else kinds[number % 10]


def body(number: int, updated: datetime, files: Sequence[tuple[str, str]]) -> Body:
    """The item with that number; ``files`` are PAN and MS of the scenes that have any."""
    west, south = -170 + number % 340, -60 + number // 340 % 120
    ring = [[west, south], [west + 0.5, south], [west + 0.5, south + 0.5], [west, south + 0.5], [west, south]]
    base = f"https://example.com/{number:06}"
    pan: Body = {"href": f"{base}-pan.tif", "eo:bands": [{"name": "P", "common_name": "pan"}]}
    ms: Body = {"href": f"{base}-ms.tif", "eo:bands": [{"name": name, "common_name": name} for name in MS_BANDS]}
    platform, assets = "WV02", {"pan_analytic": pan, "ms_analytic": ms}
    if kind(number) == "files":
        names = ("blue", "green", "red", "nir")
        ms = {"href": files[number][1], "eo:bands": [{"name": name, "common_name": name} for name in names]}
        platform, assets = "geoeye-1", {"pan": pan | {"href": files[number][0]}, "ms": ms}
    elif kind(number) == "no PAN":
        assets = {"ms_analytic": ms}
    elif kind(number) == "half":
        platform, assets = "cbers-4", {"B1": pan}
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": f"item-{number:06}", "collection": COLLECTION, "links": [],
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [west, south, west + 0.5, south + 0.5],
        "properties": {
            "datetime": (ACQUIRED + timedelta(minutes=number)).isoformat().replace("+00:00", "Z"),
            "updated": updated.isoformat().replace("+00:00", "Z"),
            "platform": platform,
        },
        "assets": assets,
    }  # fmt: skip


def other_half(number: int) -> Body:
    """The MS half of a scene whose PAN has that number, acquired 2 s later."""
    made = body(number, SECOND_NIGHT, ())
    moment = ACQUIRED + timedelta(minutes=number, seconds=2)
    made["id"] += "-ms"
    made["properties"]["datetime"] = moment.isoformat().replace("+00:00", "Z")
    bands = (("B2", "green"), ("B3", "red"), ("B4", "nir"))
    made["assets"] = {
        key: {"href": f"https://example.com/{number}-{key}.tif", "eo:bands": [{"name": key, "common_name": name}]}
        for key, name in bands
    }
    return made


# --- what must be known -----------------------------------------------------------------------------------------------


def expected(numbers: Sequence[int], halves: Sequence[int]) -> dict[str, str]:
    """Id of every item -> what the ledger must say about it."""
    states = {"files": "processed", "scene": "eligible", "no PAN": "refused", "half": "found"}
    known = {f"item-{number:06}": states[kind(number)] for number in numbers}
    for number in halves:
        known |= {f"item-{number:06}": "eligible", f"item-{number:06}-ms": "refused"}
    return known


def compare(known: Mapping[str, str], ledger: Mapping[str, str]) -> dict[str, int]:
    """How many items are missing, unexpected, or in another state than they should be."""
    wrong = [name for name in known.keys() & ledger.keys() if known[name] != ledger[name]]
    return {
        "items": len(known),
        "missed": len(known.keys() - ledger.keys()),
        "not_expected": len(ledger.keys() - known.keys()),
        "in_wrong_state": len(wrong),
    }


# --- a night ----------------------------------------------------------------------------------------------------------


def night(source: str, folder: Path, changed_since: datetime | None) -> Body:
    """Plan, then search and sharpen what may be, in this process."""
    from pancrafter import runs
    from pancrafter.access import Access
    from pancrafter.ledger import open_ledger
    from pancrafter.plan import make_plan
    from pancrafter.settings import Settings

    settings = Settings(
        source=source,
        sink=str(folder / "sink"),
        state_dir=str(folder / "state"),
        workers=0,
        block_px=128,
        limit=REAL if changed_since is None else 1,
        changed_since=changed_since,
        access=Access(roots=(str(folder),)),
    )
    began = time.perf_counter()
    plan = make_plan(settings)
    planned = time.perf_counter()
    outcomes = runs.run(settings, lambda _: None)
    ran = time.perf_counter()
    with open_ledger(settings) as ledger:
        states = {row.item_id: row.state.value for row in ledger.each(settings.sink)}
    processed = {"confirmed": "processed", "held": "processed"}
    return {
        "planned": {line.verdict: line.scenes for line in plan.lines},
        "plan_s": round(planned - began, 1),
        "run_s": round(ran - planned, 1),
        "outcomes": dict(Counter(outcome.verdict for outcome in outcomes)),
        "failures": [outcome.reason for outcome in outcomes if outcome.failed],
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "states": {name: processed.get(state, state) for name, state in states.items()},
    }


def _night_apart(source: str, folder: Path, changed_since: datetime | None) -> Body:
    command = [sys.executable, __file__, "--night", source, str(folder)]
    command += [changed_since.isoformat()] if changed_since else []
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: Body = json.loads(answer.splitlines()[-1])
    return found


def nights(
    what: str,
    source: str,
    folder: Path,
    count: int,
    send: Send,
    *,
    broken: Callable[[int], bool] = lambda _: False,
    run: Callable[[str, Path, datetime | None], Body] = night,
) -> Iterator[Body]:
    """Two nights over a source that holds nothing yet; one line of figures for each.

    ``send`` puts items into the source, whether they are there or not. Items that are ``broken`` there count as absent.
    """
    files = write_files(folder)
    start = time.perf_counter()
    send([body(number, FIRST_NIGHT, files) for number in range(count)])
    sent = round(time.perf_counter() - start, 1)
    whole = [number for number in range(count) if not broken(number)]
    found = run(source, folder, None)
    states = _without_broken(found.pop("states"))
    yield {"night": f"{what}, first", "sent_s": sent} | compare(expected(whole, ()), states) | found

    late = [number for number in range(count, count + max(count // 50, 10)) if not broken(number)]
    halves = [number for number in whole if kind(number) == "half"][::10]
    replaced = [0, *[number for number in whole if kind(number) == "scene"][::100]]
    again = [body(number, FIRST_NIGHT, files) for number in whole[::50] if number not in replaced]
    changed = [body(number, SECOND_NIGHT, files) for number in (*late, *replaced)]
    send([*changed, *(other_half(number) for number in halves), *again])
    found = run(source, folder, FIRST_NIGHT + timedelta(hours=12))
    states = _without_broken(found.pop("states"))
    yield (
        {"night": f"{what}, second", "late": len(late), "other_halves": len(halves), "replaced": len(replaced)}
        | compare(expected([*whole, *late], halves), states)
        | found
    )


def _without_broken(states: Mapping[str, str]) -> dict[str, str]:
    """Broken documents are known by the place of their file."""
    return {name: state for name, state in states.items() if not name.endswith(".json")}


def write_files(folder: Path) -> list[tuple[str, str]]:
    """PAN and MS of a few simulated scenes."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from small_archive import add_scene

    made = [add_scene(folder / "archive", f"scene-{n}", side_px=128, seed=n) for n in range(REAL)]
    return [(scene.pan.as_uri(), scene.ms.as_uri()) for scene in made]


# --- sources ----------------------------------------------------------------------------------------------------------


def sender_to_api(url: str) -> Send:
    """Sends items to a STAC API with bulk transactions, a thousand at a time."""
    import httpx

    client = httpx.Client(timeout=300)
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    collection = {
        "type": "Collection", "id": COLLECTION, "stac_version": "1.0.0", "description": "x", "license": "other",
        "links": [], "extent": extent,
    }  # fmt: skip
    client.post(f"{url}/collections", json=collection).raise_for_status()

    def send(items: Sequence[Body]) -> None:
        for start in range(0, len(items), 1000):
            part = {item["id"]: item for item in items[start : start + 1000]}
            answer = client.post(f"{url}/collections/{COLLECTION}/bulk_items", json={"items": part, "method": "upsert"})
            answer.raise_for_status()

    return send


def sender_to_folder(folder: Path, *, broken: Callable[[int], bool]) -> Send:
    """Writes items as a static catalog whose children have a hundred items; a hundredth is linked twice."""
    folder.mkdir()

    def send(items: Sequence[Body]) -> None:
        for item in items:
            number = int(item["id"].split("-")[1])
            child = folder / f"child-{number // PER_CHILD:05}"
            child.mkdir(exist_ok=True)
            text = "{ broken" if item["id"] == f"item-{number:06}" and broken(number) else json.dumps(item)
            (child / f"{item['id']}.json").write_text(text)
        children = sorted(path.name for path in folder.iterdir() if path.is_dir())
        for name in children:
            hrefs = sorted(path.name for path in (folder / name).glob("item-*.json"))
            _write_catalog(folder / name, "item", [*hrefs, *hrefs[3::100]])
        _write_catalog(folder, "child", [f"{name}/catalog.json" for name in children])

    return send


def _write_catalog(folder: Path, rel: str, hrefs: Sequence[str]) -> None:
    links = [{"rel": rel, "href": f"./{href}"} for href in hrefs]
    document = {"type": "Catalog", "id": folder.name, "stac_version": "1.0.0", "description": "x", "links": links}
    (folder / "catalog.json").write_text(json.dumps(document))


@contextmanager
def pgstac(folder: Path) -> Iterator[str]:
    """A STAC API on PostgreSQL with pgstac, for the block."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from infra import stack

    stack.install()
    if reason := stack.missing():
        raise SystemExit(reason)
    folder.mkdir()
    folder.chmod(0o755)
    family = stack.Family(folder)
    try:
        servers = stack.Stack(family, folder)
        servers.start_catalog()
        yield servers.urls["PANCRAFTER_CATALOG_URL"]
    finally:
        family.end()


def _is_broken(number: int) -> bool:
    return number % 100 == 7


def _say(line: Body) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(api: int, static: int) -> None:
    """Two nights over each kind of source."""
    from bench_discovery import serving_files

    with tempfile.TemporaryDirectory(prefix="bench-nightly-") as scratch:
        Path(scratch).chmod(0o755)  # PostgreSQL runs as somebody else
        if api:
            with pgstac(Path(scratch) / "servers") as url:
                for line in nights("STAC API", url, Path(scratch) / "api", api, sender_to_api(url), run=_night_apart):
                    _say(line)
        if static:
            folder = Path(scratch) / "static"
            (Path(scratch) / "work").mkdir()
            send = sender_to_folder(folder, broken=_is_broken)
            with serving_files(folder) as url:
                for line in nights(
                    "static catalog", url, Path(scratch) / "work", static, send, broken=_is_broken, run=_night_apart
                ):
                    _say(line)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--night"]:
        since = datetime.fromisoformat(sys.argv[4]) if len(sys.argv) > 4 else None
        _say(night(sys.argv[2], Path(sys.argv[3]), since))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("api", metavar="API_ITEMS", type=int, nargs="?", default=10_000)
        parser.add_argument("static", metavar="STATIC_ITEMS", type=int, nargs="?", default=5000)
        main(**vars(parser.parse_args()))
