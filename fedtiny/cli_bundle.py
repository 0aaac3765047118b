"""``fedtiny bundle``: the agent as one file, for a board without a network."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedtiny.bundle import Bundle


def bundle(
    machine: Annotated[
        str, typer.Option("--for", metavar="MACHINE", help="aarch64 or armv7l (32-bit systems).")
    ],
    python: Annotated[
        str, typer.Option(metavar="VERSION", help="The board's Python: 3.11 with Debian 12.")
    ] = "3.11",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What to write; else a name that tells.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Pack the agent for Raspberry Pis: one file that installs without a network."""
    from fedtiny.bundle import make_bundle

    made = make_bundle(machine, python, out)
    if as_json:
        typer.echo(json.dumps(asdict(made) | {"file": str(made.file)}))
    else:
        _show(made)


def _show(made: Bundle) -> None:
    from fedtiny.bundle import FOLDER

    typer.echo(f"{made.file}: {made.nbytes / 1e6:.1f} MB, {len(made.contents)} files")
    typer.echo(f"SHA-256 {made.sha256}")
    typer.echo("\nCopy it to the board, and there:")
    typer.echo(f"  tar xf {made.file.name}\n  sudo {FOLDER}/install.sh")
    typer.echo("  sudo fedtiny-agent join STRING    # from `fedtiny token create`")
