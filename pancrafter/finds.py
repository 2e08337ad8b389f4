"""What a find of discovery means for a scene that the ledger may know: decided from its row, without a database."""

from __future__ import annotations

from typing import Any, Literal

from pancrafter.ledger_tables import plain_json, tidy
from pancrafter.states import IN_WORK, LedgerRow, State, Work
from pancrafter.types import Refusal

Values = dict[str, Any]  # columns of a row, which have all sorts of types

COMPARED = ("state", "output_item_id", "fingerprint", "recipe", "supersedes", "code", "reason")
"""What decides whether a find is news about a scene."""


def compared(row: LedgerRow) -> Values:
    """What of a row ``verdict_on_known`` asks for."""
    return {name: getattr(row, name) for name in COMPARED}


def verdict_on_known(row: Values, entry: Work | Refusal) -> Literal["changed", "known", "busy"]:
    """Decide what a find means for a scene the ledger already has.

    Args:
        row: The scene's columns of ``COMPARED``.
        entry: What discovery saw now.
    """
    state = State(row["state"])
    if isinstance(entry, Refusal):
        # What is published stays until a newer version replaces it. What a person refused stays refused: this run may
        # lack the contract or the access by which the item was recognised.
        if state is State.CONFIRMED or (state is State.REFUSED and row["fingerprint"] is not None):
            return "known"
        same = (row["code"], row["reason"]) == (entry.code, tidy(entry.reason))
    else:
        same_source = row["fingerprint"] == entry.scene.fingerprint
        same_result = (row["recipe"], row["output_item_id"]) == (entry.recipe, entry.output_item_id)
        same = same_source and (state is State.REFUSED or same_result)
    if same:
        return "known"
    return "busy" if state in IN_WORK else "changed"


def may_be_published_again(row: Values, entry: Work | Refusal) -> bool:
    """Whether a changed scene is back to what is published; it is unless what was to replace it was begun (measures).

    Arguments as in ``verdict_on_known``.
    """
    if State(row["state"]) is not State.ELIGIBLE or isinstance(entry, Refusal):
        return False
    return bool(row["supersedes"] == entry.output_item_id)


def key_of(entry: Work | Refusal) -> tuple[str, str]:
    """Collection and item id."""
    found = entry.scene if isinstance(entry, Work) else entry
    return found.collection, found.item_id


def state_of(entry: Work | Refusal) -> State:
    """What a scene becomes that is new, or was found changed."""
    if isinstance(entry, Work):
        return State.ELIGIBLE
    return State.FOUND if entry.waits else State.REFUSED


def columns_of(entry: Work | Refusal) -> Values:
    """What discovery knows; every entry fills the same columns, so that batches are one statement."""
    collection, item_id = key_of(entry)
    values: Values = dict.fromkeys(("acquired", "scene", "fingerprint", "recipe", "output_item_id", "code", "reason"))
    values |= {"collection": collection, "item_id": item_id, "state": state_of(entry)}
    if isinstance(entry, Refusal):
        return values | {"sensor": entry.sensor, "code": entry.code, "reason": tidy(entry.reason)}
    return values | {
        "sensor": entry.scene.sensor,
        "acquired": entry.scene.acquired,
        "scene": plain_json(entry.scene.model_dump(mode="json"), scene=entry.scene.key),
        "fingerprint": entry.scene.fingerprint,
        "recipe": entry.recipe,
        "output_item_id": entry.output_item_id,
    }


def change_message(row: Values, entry: Work | Refusal) -> str:
    """What the history says of a scene that was found changed."""
    if isinstance(entry, Refusal):
        return f"{entry.code}: {tidy(entry.reason)}"
    if row["fingerprint"] is None:
        return "recognised now"
    parts = []
    if row["fingerprint"] != entry.scene.fingerprint:
        parts.append("the source changed")
    if row["recipe"] != entry.recipe:
        parts.append("the recipe changed")
    if not parts:
        parts.append(f"it is published as {entry.output_item_id} now")
    replaced = f"; will supersede {row['output_item_id']}" if State(row["state"]) is State.CONFIRMED else ""
    return " and ".join(parts) + replaced
