"""``pancrafter sensors``: contracts, and items checked against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import (
    ContractsOption,
    JsonOption,
    console_for_tables,
    contracts_from,
    print_json,
    settings_from,
)
from pancrafter.errors import PancrafterError

if TYPE_CHECKING:
    from pancrafter.types import Refusal, Scene

sensors_app = typer.Typer(no_args_is_help=True, help="Look at sensor contracts, and check items against them.")
app.add_typer(sensors_app, name="sensors")


@sensors_app.command("list")
def sensors_list(*, as_json: JsonOption = False, contracts_dir: ContractsOption = None) -> None:
    """List the sensors that are known."""
    from pancrafter.summary import sensor_table

    contracts = contracts_from(contracts_dir)
    if as_json:
        print_json([contract.model_dump(mode="json") for contract in contracts.values()])
    else:
        console_for_tables().print(sensor_table(contracts), soft_wrap=False)


@sensors_app.command("show")
def sensors_show(
    name: Annotated[str, typer.Argument(help="Name of a contract, or of a platform.")],
    *,
    as_json: JsonOption = False,
    contracts_dir: ContractsOption = None,
) -> None:
    """Print a sensor contract as YAML: also the pattern for a contract of your own."""
    from pancrafter.sensors import get_contract

    extra = settings_from(contracts_dir=contracts_dir).contracts_dir
    content = get_contract(name, Path(extra) if extra else None).model_dump(mode="json")
    if as_json:
        print_json(content)
        return
    import yaml

    typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=118), nl=False)


@sensors_app.command("check")
def sensors_check(
    item: Annotated[Path, typer.Argument(metavar="ITEM.json", help="A STAC item.")],
    *,
    as_json: JsonOption = False,
    contracts_dir: ContractsOption = None,
) -> None:
    """Say what discovery would make of a STAC item, from its metadata alone."""
    from pancrafter.catalog import judge_document

    verdict = judge_document(_read_object(item), str(item.absolute()), contracts_from(contracts_dir))
    found = verdict_json(verdict)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['verdict']}: {found['reason']}")
    for name in ("sensor", "acquired", "pan", "ms"):
        if found.get(name):
            typer.echo(f"  {name}: {_inline(found[name])}")


def verdict_json(verdict: Scene | Refusal) -> dict[str, Any]:
    """The verdict on an item as the JSON that ``sensors check`` promises.

    ``pair``: one part of a scene spread over several items; ``defect``: no valid item at all.
    """
    from pancrafter.types import Refusal

    common = {"sensor": verdict.sensor, "collection": verdict.collection, "item": verdict.item_id}
    if isinstance(verdict, Refusal):
        kind = {"part_of_scene": "pair", "malformed": "defect"}.get(verdict.code, "refused")
        return {"verdict": kind, "reason": verdict.reason, "code": verdict.code, **common, "bands": [], "pan": None}
    reason = f"recognised as {verdict.sensor} with PAN and {len(verdict.bands)} MS bands; the file headers decide"
    return {
        "verdict": "eligible",
        "reason": reason,
        "code": None,
        **common,
        "bands": list(verdict.bands),
        "pan": verdict.pan.model_dump(mode="json"),
        "ms": [asset.model_dump(mode="json") for asset in verdict.ms],
        "acquired": verdict.acquired,
    }


def _inline(value: Any) -> str:  # Any: a value of the JSON above
    if isinstance(value, list):
        return ", ".join(_inline(entry) for entry in value)
    return f"{value['key']}[{value['band']}]" if isinstance(value, dict) else str(value)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise PancrafterError(f"{path}: not readable as JSON ({err}); expected a STAC item") from err
    if not isinstance(body, dict):
        raise PancrafterError(f"{path}: found a JSON {type(body).__name__}, expected a STAC item")
    return body
