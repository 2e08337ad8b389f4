"""The model behind the products: one STAC item (MLM extension) per set of weights, and which products it made.

Model items lie in the collection ``models`` of the output catalog, with the weights file as their asset. Products link
to theirs (``derived_from`` with ``mlm:name``), so that a reader gets from pixels to weights and training data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from pancrafter.errors import WeightsError
from pancrafter.model.config import NetworkConfig
from pancrafter.model.names import (
    for_benchmark,
    model_name,
    require_weights,
    shipped_weights,
    weights_path,
    weights_sha256,
    without_folders,
)
from pancrafter.times import timestamp
from pancrafter.types import Json, Record

if TYPE_CHECKING:
    import pystac

    from pancrafter.catalog_links import CollectionInfo
    from pancrafter.item import AssetFile, Recipe
    from pancrafter.publish import StaticSink


MODELS = "models"
"""Collection of the model items in every output catalog."""

WEIGHTS_ASSET = "weights"
_EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/version/v1.2.0/schema.json",
)
_NOT_RECORDED = "1970-01-01T00:00:00Z"
_TILE_PX = 680
_LONGEST_HEADER = 100_000_000  # the format's own limit


class Product(Record):
    """One published item and what made it."""

    collection: str
    item_id: str
    source: str = Field(description="Key of the source scene, collection/item_id.")
    sensor: str
    weights: str
    weights_sha256: str
    mpx: float


def model_item_id(name: str, sha256: str) -> str:
    """Id of a model item: name and the start of the weights' hash, so that retrained weights are another item."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{sha256[:10]}"


def ensure_model(sink: StaticSink, recipe: Recipe, name_or_path: str) -> Json | None:
    """Publish the model item of a recipe's weights, which ``name_or_path`` finds, unless it is there.

    Returns:
        The link for products; None where the recipe has no weights.

    Raises:
        WeightsError: The weights are not ours, or are no longer those of the recipe.
        SinkError: The catalog cannot be written.
    """
    if recipe.weights is None or recipe.weights_sha256 is None:
        return None
    item_id = model_item_id(recipe.weights, recipe.weights_sha256)
    if not sink.exists(MODELS, item_id):
        require_weights(name_or_path, weights_sha256(name_or_path), recipe.weights_sha256)
        item, asset = build_model_item(name_or_path)
        sink.publish(item, [asset], collection=_collection())
    return model_link(recipe.weights, item_id)


def model_link(name: str, item_id: str) -> Json:
    """Link from a product, at its place in the output catalog, to its model item."""
    return {
        "rel": "derived_from",
        "href": f"../../{MODELS}/{item_id}/{item_id}.json",
        "type": "application/geo+json",
        "title": f"Model {name}",
        "mlm:name": name,
    }


def build_model_item(name_or_path: str) -> tuple[pystac.Item, AssetFile]:
    """Describe weights as a STAC item; everything in it comes from the weights file itself.

    Raises:
        WeightsError: The file is no checkpoint of ours.
    """
    import pystac

    from pancrafter.item import AssetFile, links_up, multihash_of

    path, sha256, name = weights_path(name_or_path), weights_sha256(name_or_path), model_name(name_or_path)
    header = _header(path)
    network, training = json.loads(header["network"]), json.loads(header.get("training", "{}"))
    stamp = timestamp()
    item = pystac.Item(
        id=model_item_id(name, sha256),
        geometry={"type": "Polygon", "coordinates": [[[-180, -90], [180, -90], [180, 90], [-180, 90], [-180, -90]]]},
        bbox=[-180.0, -90.0, 180.0, 90.0],
        datetime=None,
        properties={
            "start_datetime": _NOT_RECORDED,
            "end_datetime": "9999-12-31T23:59:59Z",
            "title": f"PAN-Crafter weights {name}",
            "description": _description(network, training),
            "created": stamp,
            "updated": stamp,
            "version": sha256[:12],
            **_mlm(name, network, training, header),
        },
        collection=MODELS,
        stac_extensions=list(_EXTENSIONS),
    )
    asset = AssetFile(
        key=WEIGHTS_ASSET,
        path=str(path),
        media_type="application/vnd.safetensors",
        roles=("mlm:model", "mlm:weights"),
        title="Weights, safetensors",
        size_bytes=path.stat().st_size,
        checksum=multihash_of(path),
        shape_yx=(0, 0),
    )
    item.add_asset(
        WEIGHTS_ASSET,
        pystac.Asset(
            href=str(path),
            title=asset.title,
            media_type=asset.media_type,
            roles=list(asset.roles),
            extra_fields={
                "file:size": asset.size_bytes,
                "file:checksum": asset.checksum,
                "mlm:artifact_type": "safetensors.torch.save_file",
            },
        ),
    )
    item.links = links_up(MODELS)
    return item, asset


def products_of(sink: StaticSink, model: str | None = None, *, deprecated: bool = False) -> Iterator[Product]:
    """Published items whose pixels the model made; a classical fallback is not among them.

    Args:
        sink: The output catalog.
        model: Name of the weights, id of the model item, or at least 8 characters of the weights' hash; None: any.
        deprecated: Superseded items too.
    """
    for item in sink.items():
        properties = item["properties"]
        recipe = properties.get("pancrafter:recipe")
        if not recipe or not recipe.get("weights_sha256") or (properties.get("deprecated") and not deprecated):
            continue
        name, sha256 = model_name(str(recipe["weights"])), str(recipe["weights_sha256"])
        if model is None or model == recipe["weights"] or _means(model, name, sha256):
            source, (height, width) = properties["pancrafter:source"], properties["proj:shape"]
            yield Product(
                collection=item["collection"],
                item_id=item["id"],
                source=f"{source['collection']}/{source['item_id']}",
                sensor=properties["pancrafter:sensor"],
                weights=name,
                weights_sha256=sha256,
                mpx=height * width / 1e6,
            )


def is_known(sink: StaticSink, model: str) -> bool:
    """Whether weights that are called so were shipped, are described in the catalog, or made any of its products."""
    return (
        any(_means(model, name, entry["sha256"]) for name, entry in shipped_weights().items())
        or model in sink.item_ids(MODELS)
        or any(products_of(sink, model, deprecated=True))
    )


def _means(model: str, name: str, sha256: str) -> bool:
    return model in {name, model_item_id(name, sha256)} or (len(model) >= 8 and sha256.startswith(model))


def _header(path: Path) -> Mapping[str, str]:
    """The text that a safetensors file carries, read without torch: 8 bytes of length, then JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            content = json.loads(file.read(min(length, _LONGEST_HEADER)))
    except (OSError, ValueError) as err:
        raise WeightsError(
            f"{path}: no readable safetensors file ({err}); give a checkpoint of pancrafter train"
        ) from err
    metadata: dict[str, str] = content.get("__metadata__", {})
    if "network" not in metadata:
        raise WeightsError(f"{path} holds no network description; expected a checkpoint written by pancrafter train")
    parameters = sum(math.prod(tensor["shape"]) for name, tensor in content.items() if name != "__metadata__")
    return {**metadata, "parameters": str(parameters)}


def _mlm(name: str, network: Json, training: Json, header: Mapping[str, str]) -> Json:
    config, settings = NetworkConfig.model_validate(network), _training_settings(training)
    contract = _benchmark_contract(training) if for_benchmark(training) else _scene_contract(config, training)
    return {
        "mlm:name": name,
        "mlm:architecture": "PAN-Crafter",
        "mlm:tasks": ["super-resolution"],
        "mlm:framework": "pytorch",
        "mlm:total_parameters": int(header["parameters"]),
        "mlm:memory_size": 4 * int(header["parameters"]),
        "mlm:pretrained": True,
        "mlm:pretrained_source": settings["training"].get("start"),
        "mlm:accelerator_constrained": False,
        "mlm:input": [
            {"name": given, "bands": [], "description": f"{words}.", "input": _tensor(*shape)}
            for given, words, shape in _inputs(config, contract)
        ],
        "mlm:output": [
            {
                "name": "sharpened",
                "tasks": ["super-resolution"],
                "description": f"The bands on the PAN grid{contract.shares}, scaled back to their own "
                f"DN{contract.afterwards}.",
                "result": _tensor(config.head_channels, _TILE_PX, _TILE_PX),
            }
        ],
        "mlm:hyperparameters": {"network": network, **settings},
    }


def _tensor(channels: int, *size: int) -> Json:
    """Float32 of any number of samples, of a size (y, x) or, without one, one number per channel."""
    axes = ["batch", "channel", "height", "width"][: 2 + len(size)]
    return {"shape": [-1, channels, *size], "dim_order": axes, "data_type": "float32"}


class _Contract(NamedTuple):
    """What a network is to be given and what is made of its result, in words."""

    scaling: str
    ms: str
    afterwards: str
    shares: str = ""


def _inputs(config: NetworkConfig, contract: _Contract) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """What the network is given: name, in words, and channels with their size; high-pass PAN is PAN less low-pass."""
    tile = (_TILE_PX, _TILE_PX)
    yield "pan", f"Panchromatic band on its own grid, {contract.scaling}", (1, *tile)
    yield "ms", f"{contract.ms}; {contract.scaling}", (config.bands, -1, -1)
    if config.split_pan:
        blur = "the scene's MS is, mean of the bands" if config.matched_lowpass else "a Gaussian MTF says"
        yield "lowpass_pan", f"PAN as blurred as {blur}", (1, *tile)
    if config.injected_detail:
        words = "What each band would take from PAN by Gram-Schmidt adaptive, fitted on the scene, in the units of ms"
        yield "injected_detail", words, (config.bands, *tile)
    if config.told_uncertainty:
        yield "uncertainty", "How uncertain shift, MTF and DN are: 1 as at full resolution, 0 exact", (1,)


def _scene_contract(config: NetworkConfig, training: Json) -> _Contract:
    ratios = sorted(int(ratio) for ratio in (training.get("config") or {}).get("ratios", ()))
    known = f"trained at ratio {', '.join(map(str, ratios))}" if ratios else "ratio of training not recorded"
    which = (
        "One multispectral band of any wavelength, the others follow one after the other"
        if config.bands == 1
        else f"{config.bands} multispectral bands at once, which and in the order that the weights were trained with"
    )
    return _Contract(
        scaling="2 (DN - low) / (high - low) - 1 with low and high the 1st and 99th percentile of the scene",
        ms=f"{which}; {known}, at a stated phase against PAN",
        afterwards=("; what their mix misses of PAN's fine detail is put back" if config.injected_detail else "")
        + "; what the sensor's MTF would make of them is then brought into agreement with the MS input "
        f"({_FOLLOWING_MS[config.weighs_ms]})",
        shares=("", " and a share for each", " and two shares for each")[config.weighs_ms],
    )


_FOLLOWING_MS = (
    "one step of back-projection",
    "one step of back-projection, and the share of what that leaves",
    "one step of back-projection, the first share of what that leaves, the second of what four more would add",
)
"""By ``weighs_ms``."""


def _benchmark_contract(training: Json) -> _Contract:
    from pancrafter.pancollection import PHASE_PX, RATIO, sensor_of

    data = training["config"]["pancollection"]
    _, sensor = sensor_of(Path(data["train"][0]), data.get("sensor"))
    return _Contract(
        scaling=f"2 DN / {sensor.dn_max} - 1",
        ms=f"The bands of {sensor.contract} in PanCollection ({', '.join(sensor.bands)}), ratio {RATIO}, MS pixel i at "
        f"PAN index {RATIO} i + {PHASE_PX:g}",
        afterwards=f" and cut to 0..{sensor.dn_max}; nothing is put back. For the benchmark's tables only: scenes have "
        "other DN ranges and another phase",
    )


def _training_settings(training: Json) -> Json:
    """What the trainer was told, with hashes of the weights that it was given, and what it reached."""
    config = {k: v for k, v in without_folders(training.get("config", {})).items() if k != "network"}
    config |= {key: training[key] for key in ("start_sha256", "mean_with_sha256") if training.get(key)}
    measured = {key: training[key] for key in ("ergas", "ergas_cubic", "step") if key in training}
    return {"training": config, "validation": measured}


def _description(network: Json, training: Json) -> str:
    images = training.get("images", [])
    simulated = sum(str(name).startswith("simulated") for name in images)
    real = [str(name) for name in images if not str(name).startswith("simulated")]
    data = (
        f"{simulated} simulated scenes and {len(real)} real pairs ({', '.join(sorted(real))})" if images else "unknown"
    )
    return (
        f"PAN-Crafter of width {network.get('width')}, {network.get('bands')} band(s) at a time. Training data: {data}."
    )


def _collection() -> CollectionInfo:
    from pancrafter.catalog_links import CollectionInfo

    return CollectionInfo(
        id=MODELS,
        title="Models",
        description="The weights that made the products of this catalog, described with the MLM extension.",
        keywords=("pansharpening", "model"),
        relation="related",
        item_assets={WEIGHTS_ASSET: {"roles": ["mlm:model", "mlm:weights"], "title": "Weights, safetensors"}},
    )
