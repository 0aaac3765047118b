"""``fedtiny zoo``: the nets that ship, and the RAM in which each of them trains."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedtiny.errors import ExperimentError, did_you_mean

PLANS = ("all", "last:1", "biases", "sparse")
"""What is shown; ``sparse`` is the net's own plan between the biases and everything."""
_DTYPES = ("float32", "int8")


def zoo(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NET]...", help="Some of them; else all.")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Samples per training step.")] = 1,
    patches: Annotated[
        bool,
        typer.Option("--patches", help="Run first layers patch by patch where that spares RAM."),
    ] = False,
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
        rows = {name: _row(name, batch, patches, status.update) for name in chosen}
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        console.print(_table(rows, batch), highlight=False)


def _row(name: str, batch: int, patches: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    from fedtiny.engine.zoo import ZOO

    entry = ZOO[name]
    forms = {"float32": entry.make, **({"int8": entry.plain} if entry.plain else {})}
    row: dict[str, Any] = {"takes": entry.takes, "sparse": entry.sparse}
    for dtype, make in forms.items():
        tell(f"compiling {name} in {dtype}")
        tiles = "auto" if patches else 1
        row[dtype] = _figures(make(), entry, dtype, batch=batch, patches=tiles)
    return row


def _figures(net: Any, entry: Any, dtype: str, **arguments: Any) -> dict[str, Any]:
    """Of a net in one dtype: its size, and the RAM of each plan."""
    from fedtiny.engine.compile import build

    ram = {}
    for plan in PLANS:
        rule = entry.sparse if plan == "sparse" else plan
        built = build(net, loss=entry.loss, plan=rule, dtype=dtype, **arguments)
        report = built.program.report()
        ram[plan] = report["ram_bytes"]
    return {
        "parameters": net.graph(1).layout.size,
        "macs_per_forward": report["macs_per_forward"],
        "ram_bytes": ram,
    }


# ---- the table -------------------------------------------------------------------------------


def _table(rows: dict[str, dict[str, Any]], batch: int) -> Table:
    told = (
        f"RAM: KiB of the whole device to train that plan at batch {batch}; sparse: the head, "
        "biases, and channels of some weights. int8 is of the net without normalisations."
    )
    table = Table(
        box=SIMPLE, show_edge=False, header_style="dim", pad_edge=False, collapse_padding=True,
        caption=told, caption_justify="left",
    )  # fmt: skip
    table.add_column("net", no_wrap=True)
    table.add_column("dtype")
    for figure in ("values", "MACs", *PLANS):
        table.add_column(figure, justify="right", no_wrap=True)
    for name, row in rows.items():
        for head, dtype in zip((name, f"  {row['takes']}"), _DTYPES, strict=True):
            table.add_row(head, *_told(dtype, row.get(dtype)))
    return table


def _told(dtype: str, figures: dict[str, Any] | None) -> Iterator[str]:
    from fedtiny.report.units import si

    if figures is None:
        return
    yield dtype
    yield f"{figures['parameters']:,}"
    yield si(figures["macs_per_forward"], "").strip()
    yield from (_kib(nbytes) for nbytes in figures["ram_bytes"].values())


def _kib(nbytes: int) -> str:
    """Rounded up, for with less it would not fit."""
    return f"{math.ceil(nbytes / 102.4) / 10:,.1f}"
