"""The commands with which a fleet is operated: they ask the coordinator that serves a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from fedtiny.errors import ExperimentError, RunError

app = typer.Typer()
token_app = typer.Typer(no_args_is_help=True, help="The strings with which devices join.")
devices_app = typer.Typer(invoke_without_command=True, help="List the devices that have joined.")
app.add_typer(token_app, name="token")
app.add_typer(devices_app, name="devices")

_HOME = Path("fleet")

_Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The coordinator's folder.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
_Run = Annotated[str, typer.Argument(metavar="RUN", help="The name of a run.")]


# ---- tokens ----------------------------------------------------------------------------------


@token_app.command("create")
def create_token(
    label: Annotated[str, typer.Option(help="What the token is for, to tell it apart.")] = "",
    expires: Annotated[str, typer.Option(metavar="DURATION", help="How long it is good.")] = "1h",
    uses: Annotated[int, typer.Option(min=1, help="How many devices may join with it.")] = 1,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where devices reach the coordinator.")
    ] = "",
    folder: _Dir = _HOME,
) -> None:
    """Print the string with which a device joins, and nothing else."""
    from fedtiny.wire.pb.admin_pb2 import TokenRequest

    request = TokenRequest(label=label, expires_in_s=_seconds(expires), uses=uses, host=host)
    made = _ask(folder, "create_token", request)
    typer.echo(made["join"])
    for line in _advice(made["join"], expires):
        typer.echo(line, err=True)


def _advice(join: str, expires: str) -> Iterator[str]:
    from fedtiny.wire.joining import JoinString

    joined = JoinString.parse(join)
    yield f"on the device, within {expires}: fedtiny-agent join 'STRING'"
    if joined.host in ("127.0.0.1", "localhost", "::1"):
        yield (
            f"only this machine reaches {joined.host}: serve others with --listen 0.0.0.0:PORT, or "
            "name the address that they reach with --host"
        )


def _seconds(text: str) -> float:
    """Seconds of a duration as experiments write it."""
    from fedtiny.experiment.reading import Duration

    kind = get_args(Duration)[1]
    try:
        return float(kind.read(text))
    except ValueError:
        raise ExperimentError(f"--expires {text!r} is not {kind.expected}") from None


@token_app.command("list")
def list_tokens(folder: _Dir = _HOME, as_json: _Json = False) -> None:
    """List the tokens with which a device can still join."""
    from fedtiny.fleet_console import show_tokens
    from fedtiny.wire.pb.admin_pb2 import TokensRequest

    _show(_ask(folder, "tokens", TokensRequest()), show_tokens, as_json)


@token_app.command("revoke")
def revoke_token(
    name: Annotated[str, typer.Argument(metavar="ID", help="The id of a token, or its label.")],
    folder: _Dir = _HOME,
    as_json: _Json = False,
) -> None:
    """Let nobody join with a token any more."""
    from fedtiny.wire.pb.admin_pb2 import RevokeTokenRequest

    done = _ask(folder, "revoke_token", RevokeTokenRequest(token=name))
    _say(done, f"the token {done['id']} is no longer good; who has joined with it stays", as_json)


# ---- devices ---------------------------------------------------------------------------------


@devices_app.callback()
def devices(context: typer.Context, folder: _Dir = _HOME, as_json: _Json = False) -> None:
    """List the devices that have joined: what they are, what they do, when they were seen."""
    from fedtiny.fleet_console import show_devices
    from fedtiny.wire.pb.admin_pb2 import DevicesRequest

    # What stands before the name of a command below holds for it too.
    context.default_map = {"revoke": {"folder": folder, "as_json": as_json}}
    if context.invoked_subcommand is None:
        _show(_ask(folder, "devices", DevicesRequest()), show_devices, as_json)


@devices_app.command("revoke")
def revoke_device(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of a device, or its index.")
    ],
    folder: _Dir = _HOME,
    as_json: _Json = False,
) -> None:
    """Shut a device out for good, from its next call on."""
    from fedtiny.fleet_console import revoked_line
    from fedtiny.wire.pb.admin_pb2 import RevokeRequest

    done = _ask(folder, "revoke", RevokeRequest(device=name))
    _say(done, revoked_line(done), as_json)


# ---- runs and models -------------------------------------------------------------------------


@app.command()
def status(folder: _Dir = _HOME, as_json: _Json = False) -> None:
    """Say where the coordinator and its runs stand, and what they wait for."""
    from fedtiny.fleet_console import show_status
    from fedtiny.wire.pb.admin_pb2 import StatusRequest

    _show(_ask(folder, "status", StatusRequest()), show_status, as_json)


@app.command()
def runs(folder: _Dir = _HOME, as_json: _Json = False) -> None:
    """List the runs in the coordinator's folder."""
    from fedtiny.fleet_console import show_runs
    from fedtiny.wire.pb.admin_pb2 import RunsRequest

    _show(_ask(folder, "runs", RunsRequest()), show_runs, as_json)


@app.command()
def models(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run; may be left away if one.")
    ] = "",
    folder: _Dir = _HOME,
    as_json: _Json = False,
) -> None:
    """List the published models of a run."""
    from fedtiny.fleet_console import show_models
    from fedtiny.wire.pb.admin_pb2 import ModelsRequest

    _show(_ask(folder, "models", ModelsRequest(run=run)), show_models, as_json)


@app.command()
def rollback(
    run: _Run,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=0, help="An older model.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: _Dir = _HOME,
    as_json: _Json = False,
) -> None:
    """Publish an older model of a run as its newest; the open round is given up."""
    from fedtiny.wire.pb.admin_pb2 import RollbackRequest

    if not yes and not _agreed(_question(folder, run, version)):
        raise ExperimentError("nothing was changed; answer y, or add --yes")
    done = _ask(folder, "rollback", RollbackRequest(run=run, version=version))
    _say(done, f"{run}: version {done['from']:,} is now version {done['version']:,}", as_json)


def _question(folder: Path, run: str, version: int) -> str:
    """What a rollback would do, as the coordinator stands."""
    from fedtiny.wire.pb.admin_pb2 import StatusRequest

    served = _ask(folder, "status", StatusRequest())["runs"]
    is_open = any(r["name"] == run and r["phase"] == "open" for r in served)
    given_up = ", and give up the open round" if is_open else ""
    return f"publish version {version:,} of {run} again{given_up}? [y/N] "


def _agreed(question: str) -> bool:
    typer.echo(question, err=True, nl=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@app.command()
def replay(
    run: _Run,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a model to this new .npz file.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Which model; else the last.")
    ] = None,
    folder: _Dir = _HOME,
    as_json: _Json = False,
) -> None:
    """Rebuild every published model of a run from its journal, and compare their digests.

    Needs no coordinator. The exit code is 9 if a model is not the one that was published.
    """
    from fedtiny.server.replaying import Recorded

    recorded = Recorded.open(folder, run)
    rows, wanted = [], None
    for model in recorded.models():
        rows.append({"version": model.version, "round": model.round, "digest": model.digest})
        wanted = model if version in (None, model.version) else wanted
    if wanted is None:
        raise RunError(f"{run} has no version {version}; it has versions 0 to {len(rows) - 1:,}")
    if out is not None:
        _write_model(out, recorded.work.layout.unflatten(wanted.model))
    document = {"run": run, "models": rows, "out": str(out) if out else None}
    told = f"{run}: {len(rows):,} models rebuilt, each the one that was published; the last is "
    _say(document, f"{told}version {rows[-1]['version']:,}, {rows[-1]['digest']}", as_json)


def _write_model(path: Path, arrays: Mapping[str, Any]) -> None:
    from fedtiny.runs import write_npz

    if path.exists():
        raise RunError(f"{path} is there already; remove it, or choose another with --out")
    write_npz(path, arrays)


# ---- asking and answering --------------------------------------------------------------------


def _ask(folder: Path, method: str, request: Any) -> dict[str, Any]:
    from fedtiny.server.asking import ask

    return ask(folder, method, request)


def _show(
    document: Mapping[str, Any], show: Callable[[Console, Mapping[str, Any]], None], as_json: bool
) -> None:
    if as_json:
        _print_json(document)
    else:
        show(Console(), document)


def _say(document: Mapping[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        typer.echo(text)


def _print_json(document: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(document))
