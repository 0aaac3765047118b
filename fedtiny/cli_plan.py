"""``fedtiny plan``: what devices can train within a budget, and what is worth it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedtiny.errors import ExperimentError, did_you_mean

if TYPE_CHECKING:
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.planning import Judged

_LISTED = re.compile(r"=([\d+-]{24})[\d+-]+")
"""The beginning of a list of channels that is too long for a screen."""


def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The experiment, in TOML.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value: --set device.ram=64KiB."),
    ] = None,
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="The board; else the first of the fleet.")
    ] = "",
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Train each layer beside the head and take what that gains: minutes."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the frontier: a .png or .svg file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Find the plans that add most to learning within a board's budget, and try them."""
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.planning import planned

    experiment = Experiment.load(file).override(*(settings or ()))
    name = _profile(experiment, profile)
    with Console(stderr=True).status("") as status:
        judged = planned(experiment, name, measure, _progress(status.update))
    if out is not None:
        from fedtiny.report.frontier import draw

        draw(judged, out)
    if as_json:
        typer.echo(json.dumps({"profile": name, "plans": [asdict(row) for row in judged]}))
    else:
        _show(Console(), name, judged)


def _profile(experiment: Experiment, name: str) -> str:
    profiles = experiment.fleet.profiles
    if name and name not in profiles:
        raise ExperimentError(
            f"the fleet has no profile {name!r}; {did_you_mean(name, profiles)}there are "
            f"{', '.join(profiles)}"
        )
    return name or next(iter(profiles))


def _progress(show: Callable[[str], None]) -> Callable[[str], None]:
    started = perf_counter()
    return lambda told: show(f"{told}, {perf_counter() - started:.0f} s")


# ---- what is printed -------------------------------------------------------------------------


def _show(console: Console, profile: str, judged: Sequence[Judged]) -> None:
    table = Table(box=SIMPLE, show_edge=False, header_style="dim", pad_edge=False)
    for column in ("RAM", "flash", "MACs", "sent", "biases", "weights", "gain"):
        table.add_column(column, justify="right")
    figure = "loss" if judged[0].accuracy is None else "accuracy"
    table.add_column(figure, justify="right")
    for row in judged:
        table.add_row(*_cells(row))
    console.print(table, "", highlight=False)
    console.print(
        "MACs: multiply-adds of a step; cut: trained for some of its input channels\n"
        f"gain: in units of what the head alone adds; {figure}: after a short training"
    )
    best = abbreviated(judged[-1].found.plan)
    console.print(f"the plan of {profile}: {best}", highlight=False, markup=False, soft_wrap=True)


def _cells(row: Judged) -> Sequence[str]:
    from fedtiny.report.units import si

    found, judged = row.found, row.loss if row.accuracy is None else row.accuracy
    sliced = f"{found.weights} ({found.slices} cut)" if found.slices else str(found.weights)
    return (
        f"{found.ram_bytes:,} B", f"{found.flash_bytes:,} B", si(found.macs_per_step, ""),
        f"{found.sent_bytes:,} B", str(found.biases), sliced, f"{found.gain:.3g}", f"{judged:.3f}",
    )  # fmt: skip


def abbreviated(text: str) -> str:
    """A plan with the beginnings of its lists of channels alone."""
    return _LISTED.sub(lambda listed: f"={listed[1].rpartition('+')[0]}+...", text)
