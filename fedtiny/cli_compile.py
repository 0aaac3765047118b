"""``fedtiny compile``: what a model needs of a device, before there is an experiment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedtiny.errors import BudgetError, ExperimentError, FedtinyError

if TYPE_CHECKING:
    from fedtiny.engine.built import Build
    from fedtiny.engine.ir import Tensor

BAR_WIDTH = 30


class Loss(StrEnum):
    """What the model learns by."""

    MSE = "mse"
    CROSS_ENTROPY = "cross_entropy"
    SOFT_CROSS_ENTROPY = "soft_cross_entropy"


class DType(StrEnum):
    """The arithmetic of training."""

    FLOAT32 = "float32"
    INT8 = "int8"


class Minimise(StrEnum):
    """What the passes keep low."""

    RAM = "ram"
    TIME = "time"


_DType = Annotated[DType, typer.Option(help="Of activations, and of the weights in layers.")]
_Head = Annotated[DType, typer.Option(help="Of the last layer's weights in an int8 Program.")]
_Patches = Annotated[
    str,
    typer.Option(metavar="N|auto", help="Run first layers for N x N patches of the image in turn."),
]
_Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the Program's image: model.fti.")
]
_Explain = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw the arena over time: a .png or .svg file.")
]


def compile_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:OBJECT",
            help="A builder net, a torch module with an attribute example_input, a pair of a "
            "module and its example input, or a function that returns one of them.",
        ),
    ],
    ram: Annotated[str, typer.Option(metavar="BYTES", help="RAM of the device: 256KiB.")],
    loss: Annotated[Loss, typer.Option(help="What the model learns by.")] = Loss.CROSS_ENTROPY,
    flash: Annotated[str, typer.Option(metavar="BYTES", help="Flash of the device.")] = "1MiB",
    batch: Annotated[int, typer.Option(metavar="N", help="Samples per training step.")] = 1,
    plan: Annotated[str, typer.Option(help="What trains: all, last:1, biases, ...")] = "all",
    dtype: _DType = DType.FLOAT32,
    head: _Head = DType.FLOAT32,
    patches: _Patches = "1",
    reserve: Annotated[str, typer.Option(metavar="BYTES", help="RAM for other firmware.")] = "0",
    fold: Annotated[
        bool, typer.Option("--fold", help="Fold batch norms into the layers before them.")
    ] = False,
    minimise: Annotated[
        Minimise, typer.Option(help="time: compute nothing twice to save memory.")
    ] = Minimise.RAM,
    max_model: Annotated[
        str, typer.Option(metavar="BYTES", help="The most bytes of parameters.")
    ] = "64MB",
    out: _Out = None,
    explain: _Explain = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Compile a model for a budget and say what it needs; the exit code is 4 if it does not fit."""
    from fedtiny.engine.compile import build
    from fedtiny.values import parse_bytes

    ram_bytes, flash_bytes = parse_bytes(ram), parse_bytes(flash)
    built = build(
        _net(model, fold, max_model), loss=loss.value, batch=batch, plan=plan, reserve=reserve,
        minimise=minimise.value, dtype=dtype.value, head=head.value, patches=_number(patches),
    )  # fmt: skip
    misfit = _misfit(built, ram_bytes, flash_bytes)
    if as_json:
        given = {"ram_given_bytes": ram_bytes, "flash_given_bytes": flash_bytes}
        typer.echo(json.dumps({**_document(built), **given, "fits": misfit is None}))
    else:
        _show(Console(), built, ram_bytes, flash_bytes)
    if explain is not None:
        from fedtiny.report.arena import draw

        _write(explain, lambda: draw(built.graph, built.memory, built.program.report(), explain))
    if misfit is not None:
        raise misfit
    if out is not None:
        _write(out, lambda: out.write_bytes(built.program.image))


def _number(patches: str) -> int | str:
    return int(patches) if patches.isdecimal() else patches


def _write(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise ExperimentError(f"{path} cannot be written: {error.strerror}") from error


def _net(model: str, fold: bool, max_model: str) -> Any:
    from fedtiny import references
    from fedtiny.engine.compile import built_net

    # At the end, as for an experiment: a file here must not hide an installed module.
    sys.path.append("")
    try:
        return built_net(lambda: references.call(model, {}), seed=0, fold=fold, max_model=max_model)
    except FedtinyError:
        raise
    except (Exception, SystemExit) as error:
        raise ExperimentError(f"{model!r}: {references.cause(error)}") from error


def _misfit(built: Build, ram_bytes: int, flash_bytes: int) -> BudgetError | None:
    try:
        built.check(ram_bytes, flash_bytes)
    except BudgetError as error:
        return error
    return None


# ---- what is printed -------------------------------------------------------------------------


def _document(built: Build) -> dict[str, Any]:
    """The figures in plain types."""
    from fedtiny.engine.patching import stage_of

    program, stage = built.program, stage_of(built.graph)
    return {
        **program.report(),
        "digest": program.digest,
        "dtype": built.dtype,
        "plan": built.rule,
        "patches": stage.tiles if stage else 1,
        "parameters": program.layout.size,
        "peak": _peak(built),
    }


def _show(console: Console, built: Build, ram_bytes: int, flash_bytes: int) -> None:
    report = built.program.report()
    console.print(_ram_table(report, ram_bytes))
    facts = Table.grid(padding=(0, 2, 0, 0))
    for fact, value in _facts(built, report, flash_bytes):
        facts.add_row(f"[dim]{fact}[/]", value)
    peak = _peak(built)
    operation = f"{peak['operation']:,}, {peak['kind']} of {escape(peak['of'])}"
    console.print(
        facts,
        f"\nThe most is alive in operation {operation}: {peak['alive_bytes']:,} B",
        _tensor_table(peak["tensors"]),
        highlight=False,
    )


def _ram_table(report: Mapping[str, int], ram_bytes: int) -> Table:
    from fedtiny.engine.program import ram_parts
    from fedtiny.report.units import percent

    table = _table("RAM")
    table.add_column("of what is given", justify="right")
    table.add_column("")
    parts = ram_parts(report)
    for part, nbytes in {**parts, "needed": report["ram_bytes"]}.items():
        share = nbytes / max(ram_bytes, 1)
        bar = "█" * min(round(share * BAR_WIDTH), BAR_WIDTH)
        told = percent(share) if nbytes else ""
        table.add_row(part, f"{nbytes:,}", told, bar, end_section=part == list(parts)[-1])
    table.add_row("given", f"{ram_bytes:,}")
    return table


def _facts(built: Build, report: Mapping[str, int], flash_bytes: int) -> Iterator[tuple[str, str]]:
    from fedtiny.engine.built import FLASH_PARTS
    from fedtiny.engine.patching import stage_of

    trained, size = report["trained_parameters"], built.graph.layout.size
    parts = ", ".join(f"{part} {report[f'{part}_bytes']:,}" for part in FLASH_PARTS)
    yield "flash", f"{report['flash_bytes']:,} of {flash_bytes:,} B: {parts}"
    yield "parameters", f"{size:,}, of which {trained:,} train by the plan {escape(built.rule)}"
    yield "dtype", built.dtype
    if stage := stage_of(built.graph):
        yield "patches", f"{stage.tiles} x {stage.tiles}, up to {escape(stage.end)}"
    forward, step = report["macs_per_forward"], report["macs_per_step"]
    yield "multiply-adds", f"{forward:,} forward, {step:,} a step of {built.graph.batch}"
    yield "operations", f"{len(built.graph.ops):,}, of which {built.graph.n_forward:,} forward"
    yield "no plan needs less arena than", f"{report['lower_bound_bytes']:,} B"


def _peak(built: Build) -> dict[str, Any]:
    """The operation with the most bytes alive, and what they are."""
    from fedtiny.engine.liveness import lifetimes, live_bytes

    graph = built.graph
    alive = live_bytes(graph)
    at = max(range(len(alive)), key=alive.__getitem__)
    living = [
        graph.tensors[n] for n, (first, last) in lifetimes(graph).items() if first <= at <= last
    ]
    op = graph.ops[at]
    return {
        "operation": at,
        "kind": op.kind,
        "of": op.outputs[0] if op.outputs else op.parameter,
        "alive_bytes": alive[at],
        "tensors": [_tensor(t) for t in sorted(living, key=lambda t: -t.nbytes)],
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "bytes": tensor.nbytes}


def _tensor_table(tensors: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("tensor", "shape")
    for tensor in tensors:
        shape = " x ".join(map(str, tensor["shape"]))
        table.add_row(escape(tensor["name"]), shape, f"{tensor['bytes']:,}")
    return table


def _table(*columns: str) -> Table:
    table = Table(*columns, box=SIMPLE, show_edge=False, header_style="dim", pad_edge=False)
    table.add_column("bytes", justify="right")
    return table
