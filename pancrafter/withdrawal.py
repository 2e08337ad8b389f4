"""Taking a product back: out of the catalogs, with a word in the feed, and not made again."""

from __future__ import annotations

from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from pancrafter.discovery import output_collection_id
from pancrafter.errors import InvalidSceneError
from pancrafter.ledger import Ledger
from pancrafter.settings import Settings
from pancrafter.states import WITHDRAWN, LedgerRow, SceneKey
from pancrafter.types import Json

if TYPE_CHECKING:
    from pancrafter.publish import StaticSink


def withdraw(key: SceneKey, reason: str, settings: Settings, ledger: Ledger) -> tuple[str, ...]:
    """Take a scene's current item out of the catalogs, tell the feed, and refuse the scene until its source changes.

    Older versions of it stay, deprecated, without their links to it.

    The ledger comes first and the item's document goes last: after a crash in between the scene is not made again, and
    withdrawing can be repeated. A newer version that waits to be made is refused with it. What the ledger does not know
    is refused by the first discovery that finds it, as the feed tells.

    Returns:
        Ids of what was taken out now; empty if nothing was left to do.

    Raises:
        InvalidSceneError: The scene has no published item.
        LeaseLostError: Somebody is working on the scene.
    """
    from pancrafter.catalog_links import successor_of
    from pancrafter.changes import ChangeFeed
    from pancrafter.publish import StaticSink
    from pancrafter.stac_api import StacApi

    row, sink = ledger.show(key), StaticSink(settings.sink)
    item_ids = _current_items(key, row, sink)
    if not item_ids and (row is None or row.code != WITHDRAWN):
        raise InvalidSceneError("has no published item in this catalog; see `pancrafter ledger show`", scene=str(key))
    if item_ids and row is not None:
        ledger.mark_refused(key, WITHDRAWN, reason, withdrawn=True)
    collection, feed = output_collection_id(key.collection), ChangeFeed(sink.store)

    def tell(item: Json) -> None:
        if api is not None:
            for older in sink.find_by_source(collection, key.item_id):
                if older["properties"].get("deprecated") and successor_of(older) is None:
                    api.send(sink, collection, older["id"])
        feed.announce("withdrawn", item, reason=reason, returned=True)

    url = settings.catalog_url
    with nullcontext() if url is None else closing(StacApi(url, settings.access)) as api:
        for item_id in item_ids:
            if api is not None:
                api.delete(collection, item_id)
            sink.withdraw(collection, item_id, announce=tell)
    return item_ids


def published_scenes(name: str, sink: StaticSink) -> list[SceneKey]:
    """Scenes that a catalog has a product of, by ``ITEM`` or ``COLLECTION/ITEM``; a ledger may not know them."""
    from pancrafter.catalog_links import SOURCE_FIELD

    linked = [
        (collection, item_id)
        for collection in sink.collection_ids()
        for item_id, source in sink.sources(collection).items()
        if source is not None and (name == source or name.endswith(f"/{source}"))
    ]
    sources = (sink.item(*one)["properties"][SOURCE_FIELD] for one in linked)
    keys = {SceneKey(sink=sink.uri, collection=one["collection"], item_id=one["item_id"]) for one in sources}
    return sorted((key for key in keys if name in {key.item_id, str(key)}), key=str)


def _current_items(key: SceneKey, row: LedgerRow | None, sink: StaticSink) -> tuple[str, ...]:
    """Ids of a scene's items that are not superseded, and of those that were left without a link by an interruption.

    The ledger alone does not know: what it plans may not be published yet.
    """
    collection = output_collection_id(key.collection)
    ids = (row.output_item_id, row.supersedes) if row is not None else ()
    planned = [sink.document(collection, item_id) for item_id in ids if item_id]
    documents = [*sink.find_by_source(collection, key.item_id), *(item for item in planned if item is not None)]
    current = [str(item["id"]) for item in documents if not item["properties"].get("deprecated")]
    return tuple(dict.fromkeys(current))
