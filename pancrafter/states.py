"""The states a scene goes through, and what the ledger takes and tells about scenes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pancrafter.errors import IllegalTransitionError, InvalidSceneError
from pancrafter.types import Record, Scene, Sums


class State(StrEnum):
    """Where a scene stands.

    ``failed`` is passed through: only events show it. ``found`` stays while items with the rest of a scene are missing.
    """

    FOUND = "found"
    REFUSED = "refused"
    ELIGIBLE = "eligible"
    CLAIMED = "claimed"
    STAGED = "staged"
    SHARPENED = "sharpened"
    ASSESSED = "assessed"
    HELD = "held"
    PUBLISHED = "published"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    DEAD = "dead"


IN_WORK = frozenset({State.CLAIMED, State.STAGED, State.SHARPENED, State.ASSESSED, State.PUBLISHED})
"""States in which exactly one worker holds a lease."""

WITHDRAWN = "withdrawn"
"""Code of scenes that are refused because their product was taken back."""

_SETBACKS = frozenset({State.FAILED, State.ELIGIBLE})
_TURNED_AWAY = frozenset({State.REFUSED, State.FOUND})

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.FOUND: frozenset({State.ELIGIBLE, State.REFUSED}),
    State.REFUSED: frozenset({State.ELIGIBLE, State.FOUND}),
    State.ELIGIBLE: frozenset({State.CLAIMED, State.CONFIRMED}) | _TURNED_AWAY,  # confirmed: its product is there
    State.CLAIMED: frozenset({State.STAGED}) | _SETBACKS,
    State.STAGED: frozenset({State.SHARPENED}) | _SETBACKS,
    State.SHARPENED: frozenset({State.ASSESSED}) | _SETBACKS,
    State.ASSESSED: frozenset({State.PUBLISHED, State.HELD}) | _SETBACKS,
    State.PUBLISHED: frozenset({State.CONFIRMED}) | _SETBACKS,
    State.HELD: frozenset({State.ELIGIBLE}) | _TURNED_AWAY,
    State.CONFIRMED: frozenset({State.ELIGIBLE}),
    State.FAILED: frozenset({State.ELIGIBLE, State.DEAD}),
    State.DEAD: frozenset({State.ELIGIBLE}) | _TURNED_AWAY,
}
"""Which state may follow which."""


def may_follow(before: State, after: State) -> bool:
    """Whether a scene in state ``before`` may go to ``after``."""
    return after in TRANSITIONS[before]


def check_transition(before: State, after: State, *, scene: str | None = None) -> None:
    """Refuse an impossible step.

    Raises:
        IllegalTransitionError: ``after`` cannot follow ``before``.
    """
    if not may_follow(before, after):
        allowed = ", ".join(sorted(TRANSITIONS[before]))
        raise IllegalTransitionError(f"is {before}, cannot become {after}; from here only {allowed}", scene=scene)


class SceneKey(Record):
    """What identifies a piece of work: the same source item sharpened into two sinks is two pieces."""

    sink: str
    collection: str
    item_id: str

    def __str__(self) -> str:
        return f"{self.collection}/{self.item_id}"

    @classmethod
    def parse(cls, text: str, sink: str) -> SceneKey:
        """The key whose ``str`` this is; item ids may hold slashes, ids of collections may not.

        Raises:
            InvalidSceneError: There is no slash, or nothing on one side of it.
        """
        collection, _, item_id = text.partition("/")
        if not (collection and item_id):
            raise InvalidSceneError(f"key {text!r}: expected collection/item_id, as `pancrafter ledger list` has it")
        return cls(sink=sink, collection=collection, item_id=item_id)


class Work(Record):
    """A recognised scene and how it would be sharpened."""

    scene: Scene
    recipe: str = Field(description="Hash of weights, contract, processing settings and format version.")
    output_item_id: str = Field(description="Id of the item this work publishes; follows from scene and recipe.")


class Lease(Record):
    """The right to work on one scene, for some seconds. ``fence`` grows with every claim, so a late worker is known."""

    key: SceneKey
    owner: str
    fence: int
    lease_s: float


class FoundCounts(Sums):
    """What a discovery changed. ``busy``: the source changed while a worker has the scene; seen again next time."""

    new: int = 0
    changed: int = 0
    known: int = 0
    busy: int = 0
    refused: int = Field(default=0, description="How many of the distinct items seen were refusals.")

    @property
    def seen(self) -> int:
        """How many distinct items were seen."""
        return self.new + self.changed + self.known + self.busy


class LedgerRow(Record):
    """The present of one scene."""

    key: SceneKey
    state: State
    sensor: str | None
    acquired: str | None
    scene: Scene | None = Field(description="None for an item that was refused from its metadata.")
    fingerprint: str | None
    recipe: str | None
    output_item_id: str | None
    supersedes: str | None = Field(description="Id of the confirmed item that this work will replace.")
    code: str | None = Field(description="Refusal code, or class of the last error.")
    reason: str | None
    attempts: int
    not_before: datetime | None
    lease_owner: str | None
    lease_expires: datetime | None
    fence: int
    measures: dict[str, Any]
    created: datetime
    updated: datetime


class Standing(NamedTuple):
    """The little that looks at very many scenes need to know about each."""

    collection: str
    item_id: str
    state: State
    acquired: str
    output_item_id: str | None
    supersedes: str | None
    claimable: bool
    in_vain: bool
    """Its last try ended for want of credentials or of weights that suit it; of such tries there is no end."""
    lease_owner: str | None
    lease_expires: datetime | None
    fence: int

    def key(self, sink: str) -> SceneKey:
        """Which scene it is, of those of a sink."""
        return SceneKey(sink=sink, collection=self.collection, item_id=self.item_id)


class Look(NamedTuple):
    """When a look at a source for what is new began and ended."""

    started: datetime
    ended: datetime


class Rate(NamedTuple):
    """What a finished scene took, all of whose blocks were computed in one go."""

    sensor: str | None
    device: str
    pixels: int
    bytes_read: int
    seconds: float
    sharpen_seconds: float


class Total(NamedTuple):
    """What the confirmed scenes of one sensor took on one kind of device, all together."""

    sensor: str
    device: str
    scenes: int
    pixels: float
    bytes_read: float
    seconds: float
    sharpen_seconds: float


class Waiting(NamedTuple):
    """Scenes of one state and error class or refusal code, and since when the oldest has been so."""

    state: State
    code: str
    scenes: int
    since: datetime


class Stuck(NamedTuple):
    """Scenes that wait for something: those acquired last, and how many there are of each state."""

    rows: tuple[LedgerRow, ...] = ()
    counts: Mapping[State, int] = {}


class Event(Record):
    """One step in the history of a scene."""

    at: datetime
    who: str
    before: State | None
    after: State
    message: str


class SweepResult(Record):
    """Scenes taken back from workers that went silent."""

    freed: tuple[SceneKey, ...] = ()
    dead: tuple[SceneKey, ...] = ()


class RedriveResult(Record):
    """Scenes made eligible again, and those that cannot be (with the reason)."""

    redriven: tuple[SceneKey, ...] = ()
    left: tuple[tuple[SceneKey, str], ...] = ()


Order = Literal["newest", "oldest", "found"]
