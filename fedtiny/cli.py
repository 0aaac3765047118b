"""The operator's command, ``fedtiny``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer
from rich.console import Console
from typer.core import TyperGroup

from fedtiny.cli_bundle import bundle
from fedtiny.cli_compile import compile_model
from fedtiny.cli_coordinator import app as coordinator_app
from fedtiny.cli_data import app as data_app
from fedtiny.cli_fleet import app as fleet_app
from fedtiny.cli_plan import plan
from fedtiny.cli_strategies import strategies
from fedtiny.cli_zoo import zoo
from fedtiny.errors import FedtinyError, RunError
from fedtiny.version import __version__

if TYPE_CHECKING:
    from fedtiny.experiment import Experiment
    from fedtiny.runs import RunFolder

# numpy, matplotlib and the simulator are imported by the commands that need them: help is instant.

USAGE, INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Turns an error of fedtiny into a message and its exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            with _plain_warnings():
                return super().invoke(ctx)
        except FedtinyError as error:
            typer.echo(f"fedtiny: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("fedtiny: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning is a line of its own, without a line of source."""

    def say(message: Warning | str, *_: object, **__: object) -> None:
        typer.echo(f"fedtiny: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield


def _exit_codes() -> Iterator[tuple[int, str]]:
    yield 0, "All went well."
    yield FedtinyError.exit_code, "A fault of fedtiny, with a traceback: please report it."
    for error in FedtinyError.__subclasses__():
        sentence, stop, _ = (error.__doc__ or "").partition(".")
        yield error.exit_code, sentence + stop
    yield USAGE, "The command line is wrong."
    yield INTERRUPTED, "Interrupted by Ctrl-C; simulate says how to go on."


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated meta-learning on tiny devices, simulated from one experiment file.",
    epilog="\n\n".join(["Exit codes:", *(f"{n:>3}  {text}" for n, text in sorted(_exit_codes()))]),
)
app.add_typer(data_app, name="data")
app.add_typer(coordinator_app)
app.add_typer(fleet_app)

_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value: --set run.rounds=10."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
_File = Annotated[Path, typer.Argument(metavar="FILE", help="The experiment, in TOML.")]
_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedtiny {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Say the version."),
    ] = False,
) -> None:
    pass


# ---- simulate --------------------------------------------------------------------------------


@app.command()
def simulate(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The experiment, in TOML; not needed with --resume."),
    ] = None,
    settings: _Set = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder; else runs/FILE-1, -2, ..."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the run of this folder.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Run an experiment under a virtual clock and write its report."""
    from fedtiny.console import show_record, watched
    from fedtiny.report import write_report
    from fedtiny.report.record import Record
    from fedtiny.runs import RunFolder
    from fedtiny.simulator.run import simulate as run_experiment

    if resume is not None and out is not None:
        raise click.UsageError("--resume goes on in its own DIR; leave --out away")
    experiment = _experiment(file, resume).override(*(settings or ()))
    folder = resume or out or _new_folder(experiment)
    console = Console(stderr=as_json)
    started = perf_counter()
    _say_if_slow()
    _say_if_searching(experiment)
    with _resumable(folder), watched(console) as pace:
        result = run_experiment(experiment, out=folder, resume=bool(resume), progress=pace.take)
    wall_s = perf_counter() - started
    run = RunFolder.open(folder)
    report = write_report(run)
    if as_json:
        made = {"folder": str(folder), "interrupted": result.interrupted, "wall_s": wall_s}
        _print_json({**result.summary, **made})
    else:
        show_record(console, Record.read(run), pace.updates_per_s)
        _print_path("report", report)
    if result.dropped and result.dropped.rows:
        typer.echo(f"{folder}: {result.dropped}", err=True)
    if result.interrupted:
        _end_interrupted(folder)


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """A second Ctrl-C ends at once, and also says how to go on where there is a run by then."""
    from fedtiny.runs import RunFolder

    try:
        yield
    except KeyboardInterrupt:
        if not RunFolder(folder).exists:
            raise
        _end_interrupted(folder)


def _end_interrupted(folder: Path) -> NoReturn:
    typer.echo(f"interrupted; go on with: fedtiny simulate --resume {folder}", err=True)
    raise typer.Exit(INTERRUPTED)


def _say_if_slow() -> None:
    """One line in place of the library's warning, which would come with a line of source."""
    from fedtiny.engine import native

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        native.available()
    for warning in told:
        typer.echo(f"fedtiny: {warning.message}", err=True)


def _say_if_searching(experiment: Experiment) -> None:
    from fedtiny.experiment.planning import searched

    if names := searched(experiment):
        told = f"finding the plans of {', '.join(names)}: up to a minute each"
        typer.echo(f"fedtiny: {told}", err=True)


def _experiment(file: Path | None, resume: Path | None) -> Experiment:
    """That of the file; without one that of the folder, as it was written there."""
    from fedtiny.experiment import Experiment
    from fedtiny.runs import RunFolder

    if file is not None:
        return Experiment.load(file)
    if resume is None:
        raise click.UsageError("give the FILE of an experiment, or --resume DIR")
    return Experiment.parse(*RunFolder.open(resume).source)


def _new_folder(experiment: Experiment) -> Path:
    """``runs/FILE-1``, or the first number that is free."""
    stem = Path(experiment.origin.name).stem
    return next(p for n in count(1) if not (p := Path("runs", f"{stem}-{n}")).exists())


# ---- before and after ------------------------------------------------------------------------


app.command("compile")(compile_model)
app.command()(strategies)
app.command()(zoo)
app.command()(plan)
app.command()(bundle)


@app.command()
def explain(file: _File, settings: _Set = None, as_json: _Json = False) -> None:
    """Say what an experiment asks of each board, in bytes, seconds and joules, and run nothing."""
    from fedtiny.console import show_explained
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.explain import explain as explained
    from fedtiny.experiment.workload import Workload

    experiment = Experiment.load(file).override(*(settings or ()))
    _say_if_searching(experiment)
    rows = explained(Workload.of(experiment))
    if not as_json:
        return show_explained(Console(), rows)
    _print_json({"profiles": [{**asdict(row), "fits": row.fits} for row in rows]})


@app.command()
def report(folder: _Folder) -> None:
    """Write the report of a run anew, and print its results."""
    from fedtiny.console import show_record
    from fedtiny.report import write_report
    from fedtiny.report.record import Record

    run = _run_in(folder)
    written = write_report(run)
    show_record(Console(), Record.read(run))
    _print_path("report", written)


class Form(StrEnum):
    """What a model can be exported to."""

    NPZ = "npz"
    C = "c"


@app.command()
def export(
    folder: _Folder,
    to: Annotated[Form, typer.Option(help="npz: named arrays. c: a program in C99 for a device.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A new file or folder; else one in DIR/export."),
    ] = None,
    round: Annotated[
        int | None, typer.Option("--round", metavar="N", help="The model after this round.")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The board whose Program is exported; else the first that fits."
        ),
    ] = "",
) -> None:
    """Export the model of a run."""
    from fedtiny.export import export_c, export_npz

    run = _run_in(folder)
    made = export_npz(run, out, round) if to is Form.NPZ else export_c(run, out, round, profile)
    _print_path("exported", made)


def _run_in(folder: Path) -> RunFolder:
    """The run of that folder. Raises RunError, which for a coordinator's folder names its runs."""
    from fedtiny.runs import RunFolder

    runs = sorted(path for path in folder.glob("runs/*") if RunFolder(path).exists)
    if runs and not RunFolder(folder).exists:
        names = ", ".join(map(str, runs))
        raise RunError(f"{folder} is the folder of a coordinator; name one of its runs: {names}")
    return RunFolder.open(folder)


# ---- what a command prints -------------------------------------------------------------------


def _print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document))


def _print_path(what: str, path: Path) -> None:
    """On a line of its own and never wrapped, so that it can be copied."""
    typer.echo(f"{what}: {path}")


def main() -> None:
    """The entry point."""
    app()
