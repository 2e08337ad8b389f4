"""``pancrafter models``: which weights made which products, and making them again with others."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pancrafter.cli.app import app
from pancrafter.cli.ledger import require_ledger
from pancrafter.cli.pipeline import carry_out
from pancrafter.cli.shared import (
    ContractsOption,
    DeviceOption,
    JsonOption,
    PrecisionOption,
    SinkOption,
    StateDirOption,
    line_reporter,
    note,
    print_json,
    require_catalog,
)
from pancrafter.options import OptionError, on_device, settings_from
from pancrafter.words import counted

if TYPE_CHECKING:
    from pancrafter.settings import Settings

models_app = typer.Typer(no_args_is_help=True, help="Which weights made which products, and making them again.")
app.add_typer(models_app, name="models")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the weights, or start of their SHA-256.")]


@models_app.command("list")
def models_list(*, sink: SinkOption = None, as_json: JsonOption = False) -> None:
    """List shipped weights and those that made products of a catalog, with how many."""
    settings = settings_from(sink=sink)
    if sink is not None:
        require_catalog(settings)
    from pancrafter.model.names import shipped_weights
    from pancrafter.models import MODELS, products_of
    from pancrafter.publish import StaticSink

    catalog = StaticSink(settings.sink)
    counts = Counter((product.weights, product.weights_sha256) for product in products_of(catalog))
    shipped = {(name, entry["sha256"]) for name, entry in shipped_weights().items()}
    described = catalog.item_ids(MODELS)
    rows: list[dict[str, Any]] = [  # Any: JSON
        {"name": name, "sha256": sha256, "shipped": (name, sha256) in shipped, "products": counts[name, sha256]}
        for name, sha256 in sorted(shipped | set(counts))
    ]
    if as_json:
        print_json({"models": rows, "items": sorted(described)})
        return
    for row in rows:
        place = "shipped" if row["shipped"] else "       "
        made = counted(row["products"], "product")
        typer.echo(f"{row['name']:24} {str(row['sha256'])[:12]}  {place}  {made}")


@models_app.command("products")
def models_products(name: NameArgument, *, sink: SinkOption = None, as_json: JsonOption = False) -> None:
    """List the products that a model made; superseded ones are left out."""
    settings = settings_from(sink=sink)
    _require_model(name, settings)
    from pancrafter.models import products_of
    from pancrafter.publish import StaticSink

    found = list(products_of(StaticSink(settings.sink), name))
    if as_json:
        print_json([product.model_dump(mode="json") for product in found])
        return
    for product in found:
        typer.echo(f"{product.collection}/{product.item_id}  {product.sensor}  {product.mpx:.2f} Mpx")
    note(f"{counted(len(found), 'product')} of {name} in {settings.sink}")


@models_app.command("remake")
def models_remake(
    name: NameArgument,
    *,
    weights: Annotated[str, typer.Option("--with", metavar="NAME", help="Shipped weights, or a checkpoint file.")],
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be made again.")] = False,
    sink: SinkOption = None,
    state_dir: StateDirOption = None,
    contracts_dir: ContractsOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model's products again with other weights; each new item supersedes the old one.

    Runs with other weights would turn them back: give later runs the same --weights. Give here what runs are given:
    --contracts-dir holds the rules that results are held or published by.
    """
    settings = settings_from(
        sink=sink,
        state_dir=state_dir,
        contracts_dir=contracts_dir,
        weights=weights,
        precision=precision,
        device=device,
    )
    require_ledger(settings)
    _require_model(name, settings)
    from pancrafter import runs

    made = runs.plan_remake(name, settings)
    if plan:
        if as_json:
            print_json(made.model_dump(mode="json"))
            return
        for product in made.products:
            typer.echo(f"{product.collection}/{product.item_id}  {product.sensor}  {product.mpx:.2f} Mpx")
        for key, reason in made.left:
            typer.echo(f"left alone: {key}: {reason}")
        typer.echo(
            f"to make again with {made.weights}: {counted(len(made.products), 'product')} of {name}, {made.mpx:.2f} Mpx"
            + (f", about {made.seconds:.0f} s as they took before" if made.seconds else "")
        )
        return
    if as_json:
        raise OptionError("--json: only together with --plan; see `pancrafter run --json FILE` for runs")
    if made.left:
        note(f"left alone: {counted(len(made.left), 'product')} of {name}; --plan says why")
    settings, report = on_device(settings), line_reporter()
    carry_out(settings, lambda: runs.remake(made, settings, report))


def _require_model(name: str, settings: Settings) -> None:
    """Tell a name that was mistyped from a model that made nothing.

    Raises:
        OptionError: There is no catalog, or neither it nor this package knows such a model.
    """
    require_catalog(settings)
    from pancrafter.models import is_known
    from pancrafter.publish import StaticSink

    if not is_known(StaticSink(settings.sink), name):
        raise OptionError(f"no model {name!r} in {settings.sink}; see `pancrafter models list`")
