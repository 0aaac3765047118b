"""``fedtiny zoo``: the nets that ship, and the RAM in which each of them trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedtiny.errors import ExperimentError, did_you_mean

PLANS = ("all", "last:1", "biases")


def zoo(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NET]...", help="Some of them; else all.")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Samples per training step.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """List the nets that ship: parameters, multiply-adds, and the least RAM to train each plan."""
    from fedtiny.engine.zoo import ZOO

    chosen = names or list(ZOO)
    for name in chosen:
        if name not in ZOO:
            known = ", ".join(ZOO)
            raise ExperimentError(
                f"the zoo has no {name!r}; {did_you_mean(name, ZOO)}there are {known}"
            )
    console = Console(stderr=as_json)
    with console.status("compiling") as status:
        rows = {}
        for name in chosen:
            status.update(f"compiling {name}")
            rows[name] = _row(name, batch)
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        console.print(_table(rows, batch), highlight=False)


def _row(name: str, batch: int) -> dict[str, Any]:
    from fedtiny.engine.compile import build
    from fedtiny.engine.zoo import ZOO

    entry = ZOO[name]
    net, ram = entry.make(), {}
    for plan in PLANS:
        built = build(net, loss=entry.loss, batch=batch, plan=plan)
        ram[plan] = built.program.report()["ram_bytes"]
    return {
        "takes": entry.takes,
        "parameters": built.graph.layout.size,
        "macs_per_forward": built.program.report()["macs_per_forward"],
        "ram_bytes": ram,
    }


def _table(rows: dict[str, dict[str, Any]], batch: int) -> Table:
    told = f"RAM: bytes of the whole device to train that plan in float32 at batch {batch}"
    table = Table(box=SIMPLE, show_edge=False, header_style="dim", pad_edge=False, caption=told)
    table.caption_justify = "left"
    table.add_column("net")
    table.add_column("takes")
    for figure in ("parameters", "multiply-adds", *(f"RAM: {plan}" for plan in PLANS)):
        table.add_column(figure, justify="right")
    for name, row in rows.items():
        table.add_row(name, row["takes"], *_figures(row))
    return table


def _figures(row: dict[str, Any]) -> Iterator[str]:
    yield f"{row['parameters']:,}"
    yield f"{row['macs_per_forward']:,}"
    yield from (f"{nbytes:,}" for nbytes in row["ram_bytes"].values())
