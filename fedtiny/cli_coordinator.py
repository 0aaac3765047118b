"""``fedtiny coordinator``, and ``fedtiny doctor`` which looks at the place where it shall serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedtiny.errors import RunError

if TYPE_CHECKING:
    from fedtiny.server.doctor import Site
    from fedtiny.server.server import Options

app = typer.Typer()

_HOME = Path("fleet")
_LISTEN = "127.0.0.1:8470"
_LOOK_EVERY_S = 1.0

_Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The coordinator's folder.")]
_Listen = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Where devices with certificates connect.")
]
_Metrics = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Serve metrics for Prometheus there.")
]


@app.command()
def coordinator(
    files: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT...", help="The experiments, in TOML.")
    ],
    listen: _Listen = _LISTEN,
    enrol: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Where devices join; else one port further."),
    ] = "",
    folder: _Dir = _HOME,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Begin a new run beside the one of that name.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No certificates, on this machine alone: for trials.")
    ] = False,
    metrics: _Metrics = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value: --set run.rounds=10."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the status as JSON, a line each time.")
    ] = False,
) -> None:
    """Serve experiments to a fleet of real devices, or go on with those of DIR.

    Ctrl-C lets devices finish what they are at; a second one ends at once. Nothing that a device
    was told is lost either way.
    """
    from fedtiny.experiment import Experiment
    from fedtiny.server.server import Options

    experiments = [Experiment.load(file).override(*(settings or ())) for file in files]
    options = Options(experiments, folder, listen, enrol, new_run, insecure, metrics)
    tell = partial(typer.echo, err=as_json)
    asyncio.run(_coordinate(options, _watch(as_json), tell))


async def _coordinate(
    options: Options, show: Callable[[Mapping[str, Any]], None], tell: Callable[[str], None]
) -> None:
    from fedtiny.server.conductor import Unavailable
    from fedtiny.server.documents import status
    from fedtiny.server.server import Coordinating, heed_signals

    asked = asyncio.Event()
    heed_signals(asked)
    serving = await Coordinating.start(options, asked)

    async def watch() -> None:
        while True:
            with suppress(Unavailable):  # the conductor says in its log why
                show(await serving.conductor.call(lambda c: status(c, serving.place)))
            await asyncio.sleep(_LOOK_EVERY_S)

    watching = asyncio.create_task(watch())
    await serving.until_stopped(tell)
    watching.cancel()


def _watch(as_json: bool) -> Callable[[Mapping[str, Any]], None]:
    """Shows where a coordinator stands."""
    from fedtiny.fleet_console import Progress

    return _print_json if as_json else Progress(typer.echo).take


@app.command()
def doctor(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[EXPERIMENT]...", help="Also check what these need."),
    ] = None,
    listen: _Listen = _LISTEN,
    metrics: _Metrics = "",
    folder: _Dir = _HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look for what may keep a coordinator from serving; the exit code is 9 if something will."""
    from fedtiny.fleet_console import show_finding
    from fedtiny.server.doctor import FAIL, examine

    console, found = Console(), []
    for finding in examine(_site(folder, listen, metrics, files or [])):
        found.append(finding)
        if not as_json:
            show_finding(console, finding)
    if as_json:
        _print_json({"findings": [asdict(finding) for finding in found]})
    if any(finding.state == FAIL for finding in found):
        raise typer.Exit(RunError.exit_code)


def _site(folder: Path, listen: str, metrics: str, files: list[Path]) -> Site:
    from fedtiny.experiment import Experiment, rules
    from fedtiny.experiment.workload import Workload
    from fedtiny.server.addresses import beside
    from fedtiny.server.asking import ask
    from fedtiny.server.doctor import Site
    from fedtiny.server.replaying import Recorded
    from fedtiny.wire.pb.admin_pb2 import StatusRequest

    runs = tuple(Workload.of(Experiment.load(file)) for file in files)
    for work in runs:
        rules.check(work, deployed=True)
    try:
        there = ask(folder, "status", StatusRequest())
    except RunError:  # nobody serves there
        return Site(folder, listen, beside(listen), False, runs, metrics)
    served = (Recorded.open(folder, run["name"]).work for run in there["runs"])
    addresses = there["listen"], there["enrol"]
    return Site(folder, *addresses, True, runs or tuple(served), there["metrics"] or "")


def _print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document))
