"""Items that hold only PAN, or only some MS bands, become scenes: the rule of the sensor contract says which belong.

Parts of one scene agree in platform and in the properties that the rule names, were acquired within its seconds, and
overlap by its share. Pure decisions about what was found; searching for missing parts is left to discovery.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pancrafter.recognise import PAN, REQUESTER_PAYS, Part, digest_of, ratio_fault
from pancrafter.sensors import JoinRule, SensorContract
from pancrafter.types import Scene

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

_BAND_SUFFIX = re.compile(r"(?i)[_-]?band[_-]?\d+$")


@dataclass(frozen=True)
class Joined:
    """Scenes with the parts they were made of, PAN first; ``waiting`` are parts that belong to none yet."""

    scenes: tuple[tuple[Scene, tuple[Part, ...]], ...]
    waiting: tuple[Part, ...]


@dataclass(frozen=True)
class _Candidate:
    part: Part
    moment: datetime
    footprint: BaseGeometry | None


def join_parts(parts: Iterable[Part], contracts: Mapping[str, SensorContract]) -> Joined:
    """Every scene that ``parts`` make up.

    Where several items offer the same band, the one that overlaps PAN most, is nearest in time, and was changed last is
    taken; if two are equal in all of that, the scene waits, as nothing says which is right.
    """
    every = list(parts)
    groups: dict[tuple[str, ...], list[_Candidate]] = {}
    for part in every:
        candidate = _Candidate(part, datetime.fromisoformat(part.acquired), _footprint(part.geometry))
        groups.setdefault((part.sensor, *part.alike), []).append(candidate)
    scenes = [made for group in groups.values() for made in _join_group(group, contracts[group[0].part.sensor])]
    used = {part.key for _, members in scenes for part in members}
    return Joined(tuple(scenes), tuple(part for part in every if part.key not in used))


def bounds_of(part: Part) -> tuple[float, float, float, float] | None:
    """West, south, east, north of a part's footprint, degrees; None if it cannot be read."""
    footprint = _footprint(part.geometry)
    return None if footprint is None else tuple(footprint.bounds)


def later(moment: datetime, by: timedelta) -> datetime:
    """The moment some time later; as it is at the ends of the calendar, which stand for "unknown" in some catalogs."""
    try:
        return moment + by
    except OverflowError:
        return moment


def _join_group(group: Sequence[_Candidate], contract: SensorContract) -> list[tuple[Scene, tuple[Part, ...]]]:
    assert contract.join is not None
    by_time = sorted((entry for entry in group if PAN not in entry.part.pieces), key=lambda entry: entry.moment)
    moments, reach = [entry.moment for entry in by_time], timedelta(seconds=contract.join.max_seconds)
    scenes = []
    for pan in (entry for entry in group if PAN in entry.part.pieces):
        first, last = later(pan.moment, -reach), later(pan.moment, reach)
        near = by_time[bisect_left(moments, first) : bisect_right(moments, last)]
        chosen = _choose_bands(pan, near, contract.join)
        names = contract.delivered(chosen)
        if names and not ratio_fault(pan.part.pieces[PAN].fields, chosen[names[0]].pieces[names[0]].fields, contract):
            scenes.append(_scene(pan.part, {name: chosen[name] for name in names}))
    return scenes


def _choose_bands(pan: _Candidate, near: Sequence[_Candidate], rule: JoinRule) -> dict[str, Part]:
    """The part that each band is taken from; bands that two parts offer equally well are left out."""
    ranked = []
    for entry in near:
        overlap = _overlap(pan.footprint, entry.footprint)
        if overlap >= rule.min_overlap:
            distance = abs((entry.moment - pan.moment).total_seconds())
            ranked.append(((round(overlap, 3), -round(distance, 3), entry.part.changed), entry.part))
    chosen = {}
    for name in {name for _, part in ranked for name in part.pieces}:
        offers = [(merit, part) for merit, part in ranked if name in part.pieces]
        best = max(merit for merit, _ in offers)
        winners = [part for merit, part in offers if merit == best]
        if len(winners) == 1:
            chosen[name] = winners[0]
    return chosen


def _scene(pan: Part, source_of: Mapping[str, Part]) -> tuple[Scene, tuple[Part, ...]]:
    """The scene of PAN and of the parts that its MS bands come from, named after the PAN item."""
    members = (pan, *{part.key: part for part in source_of.values()}.values())
    charged = {REQUESTER_PAYS: True} if any(part.properties.get(REQUESTER_PAYS) for part in members) else {}
    scene = Scene(
        collection=pan.collection,
        item_id=_BAND_SUFFIX.sub("", pan.item_id) or pan.item_id,
        sensor=pan.sensor,
        acquired=pan.acquired,
        pan=pan.pieces[PAN].ref,
        ms=tuple(part.pieces[name].ref for name, part in source_of.items()),
        bands=tuple(source_of),
        fingerprint=digest_of([part.fingerprint for part in members]),
        source_href=pan.source_href,
        further_source_hrefs=tuple(part.source_href for part in members[1:]),
        geometry=dict(pan.geometry),
        properties={**pan.properties, **charged},
    )
    return scene, members


def _footprint(geometry: Mapping[str, Any]) -> BaseGeometry | None:
    from shapely import make_valid
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    try:
        found = make_valid(shape(geometry))
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
    return None if found.is_empty else found


def _overlap(first: BaseGeometry | None, second: BaseGeometry | None) -> float:
    """Share of the smaller footprint that both have in common, 0 to 1."""
    if first is None or second is None:
        return 0.0
    smaller = min(first.area, second.area)
    return float(first.intersection(second).area / smaller) if smaller > 0 else 0.0
