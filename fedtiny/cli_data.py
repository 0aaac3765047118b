"""``fedtiny data``: the data sets that lie as files in FEDTINY_DATA."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fedtiny.errors import DataError

if TYPE_CHECKING:
    from fedtiny.data.files import DataSet
    from fedtiny.data.labelled import Labelled

app = typer.Typer(no_args_is_help=True, help="The data sets that lie as files in FEDTINY_DATA.")

T = TypeVar("T")
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set.")]
_Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="All, if none.")]


@app.command("list")
def list_sets() -> None:
    """Say which data sets there are, and which of them are here."""
    from fedtiny.data.files import DATA_SETS

    table = Table("name", "file", "here", "natural clients", "licence", box=SIMPLE)
    for row in DATA_SETS.values():
        table.add_row(row.name, row.file, _here(row), row.clients, row.licence)
    Console().print(table)
    for row in DATA_SETS.values():
        typer.echo(f"{row.name}: {row.published}")


def _here(row: DataSet) -> str:
    try:
        return f"{row.path().stat().st_size:,} B"
    except DataError:
        return "no"


@app.command()
def check(names: _Names = None) -> None:
    """Compare files with their SHA-256 and read them; the exit code is 6 if one is wrong.

    Without names, those that are here. A file that was converted has no SHA-256 to keep to.
    """
    from fedtiny.data.files import DATA_SETS, data_set

    wrong = 0
    here = [name for name, row in DATA_SETS.items() if _here(row) != "no"]
    for name in [] if names else [name for name in DATA_SETS if name not in here]:
        typer.echo(f"{name}: not here")
    for row in [data_set(name) for name in names or here]:
        try:
            data = row.check()
        except DataError as error:
            wrong += 1
            typer.echo(f"{row.name}: WRONG: {error}", err=True)
        else:
            word = "converted" if row.is_converted() else "right"
            typer.echo(f"{row.name}: {word}, {len(data.x):,} samples")
    if wrong:
        raise typer.Exit(DataError.exit_code)


@app.command("convert")
def convert_set(
    name: _Name,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where what was downloaded is unpacked.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What to write; if not given, its file in FEDTINY_DATA."),
    ] = None,
) -> None:
    """Make the file of a data set from the data as its authors publish them."""
    from fedtiny.data.convert import convert
    from fedtiny.data.files import data_set

    out = out or _home(data_set(name))
    data = convert(name, folder, out, _watched)
    typer.echo(f"{name}: {len(data.x):,} samples in {out}, {out.stat().st_size:,} B")


def _home(row: DataSet) -> Path:
    from fedtiny.data.files import VARIABLE

    folder = os.environ.get(VARIABLE)
    if not folder:
        raise DataError(f"set {VARIABLE} to the folder of the data sets, or name a file with --out")
    return Path(folder, row.file)


def _watched(parts: Sequence[T]) -> Iterable[T]:
    console = Console(stderr=True)
    quiet = not console.is_terminal
    return track(parts, "converting", console=console, transient=True, disable=quiet)


@app.command()
def deal(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The experiment, in TOML.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")],
    device: Annotated[
        int | None, typer.Option(metavar="N", help="Only that device's file; else one for each.")
    ] = None,
) -> None:
    """Write the samples that each device of an experiment has, as files for agents.

    A device of a real fleet that joined as number N trains on device-N.npz as the simulated one
    does. Of data that change from round to round, it is the samples of the first.
    """
    from fedtiny.data.tables import PARTS
    from fedtiny.durable import naming_files
    from fedtiny.experiment import Experiment
    from fedtiny.runs import write_npz

    experiment = Experiment.load(file)
    count, task = experiment.fleet.devices, experiment.build_task()
    if device is not None and not 0 <= device < count:
        raise DataError(f"there is no device {device}; {file} has 0 to {count - 1}")
    with naming_files("choose a folder that can be written"):
        out.mkdir(parents=True, exist_ok=True)
    for index in range(count) if device is None else [device]:
        (x, y), (x_query, y_query) = (task.samples(experiment.seed, 0, index, p) for p in PARTS)
        arrays = {"x": x, "y": y, "x_query": x_query, "y_query": y_query}
        write_npz(out / f"device-{index}.npz", arrays)
    typer.echo(f"dealt: {out}")


@app.command()
def describe(name: _Name) -> None:
    """Say what is in a data set."""
    from fedtiny.data.files import data_set

    row = data_set(name)
    facts = Table.grid(padding=(0, 2, 0, 0))
    for fact, value in _facts(row, row.load()):
        facts.add_row(fact, value)
    Console().print(facts)


def _facts(row: DataSet, data: Labelled) -> Iterator[tuple[str, str]]:
    import numpy as np

    yield "file", row.file
    yield "source", row.source
    yield "licence", row.licence
    yield "samples", f"{len(data.x):,}, of {data.features:,} values"
    yield "values", f"{data.x.min():.3g} to {data.x.max():.3g}"
    yield "training, test", " and ".join(f"{n:,}" for n in np.bincount(data.split, minlength=2))
    more = ", ..." if data.classes > 6 else ""
    yield "classes", f"{data.classes:,}: {', '.join(data.class_names[:6])}{more}"
    yield "samples a class", _spread(np.bincount(data.label, minlength=data.classes))
    if (data.client >= 0).any():
        _, counts = np.unique(data.client[data.client >= 0], return_counts=True)
        yield "clients", f"{len(counts):,} ({row.clients})"
        yield "samples a client", _spread(counts)
    if data.superclass is not None:
        yield "superclasses", f"{len(np.unique(data.superclass))}"


def _spread(counts: object) -> str:
    import numpy as np

    low, middle, high = np.quantile(np.asarray(counts), [0, 0.5, 1])
    return f"{low:,.0f} to {high:,.0f}, median {middle:,g}"
