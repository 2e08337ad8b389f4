"""``pancrafter sensors``: contracts, and items checked against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pancrafter.cli.app import app
from pancrafter.cli.shared import ContractsOption, JsonOption, console_for_tables, print_json
from pancrafter.errors import PancrafterError
from pancrafter.options import contracts_from, settings_from

if TYPE_CHECKING:
    from pancrafter.judge import Judgement
    from pancrafter.sensors import SensorContract

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


@sensors_app.command("schema")
def sensors_schema() -> None:
    """Print the JSON schema of a contract file: every field with its meaning."""
    from pancrafter.sensors import contract_schema

    print_json(contract_schema())


@sensors_app.command("check")
def sensors_check(
    item: Annotated[Path, typer.Argument(metavar="ITEM.json", help="A STAC item, or a folder of STAC documents.")],
    *,
    as_json: JsonOption = False,
    contracts_dir: ContractsOption = None,
) -> None:
    """Say what discovery would make of a STAC item, or of every JSON file in a folder, from metadata alone."""
    from pancrafter.summary import judgement_table

    contracts = contracts_from(contracts_dir)
    if item.is_dir():
        found = {str(path.relative_to(item)): _check(path, contracts) for path in sorted(item.rglob("*.json"))}
        if as_json:
            print_json({name: judgement.model_dump(mode="json") for name, judgement in found.items()})
        else:
            console_for_tables().print(judgement_table(found), soft_wrap=False)
        return
    judgement = _check(item, contracts)
    if as_json:
        print_json(judgement.model_dump(mode="json"))
        return
    typer.echo(f"{judgement.verdict}: {judgement.reason}")
    for name in ("sensor", "acquired", "pan", "ms"):
        if value := getattr(judgement, name):
            typer.echo(f"  {name}: {_inline(value)}")
    for kind, lines in (("defect", judgement.defects), ("note", judgement.notes)):
        for line in lines:
            typer.echo(f"  {kind}: {line}")


def _check(path: Path, contracts: dict[str, SensorContract]) -> Judgement:
    from pancrafter.catalog import check_document

    return check_document(_read_object(path), str(path.absolute()), contracts)


def _inline(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_inline(entry) for entry in value)
    from pancrafter.types import AssetRef

    return f"{value.key}[{value.band}]" if isinstance(value, AssetRef) else str(value)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise PancrafterError(f"{path}: not readable as JSON ({err}); expected a STAC item") from err
    if not isinstance(body, dict):
        raise PancrafterError(f"{path}: found a JSON {type(body).__name__}, expected a STAC item")
    return body
