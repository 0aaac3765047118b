"""The wheels of others, as pip finds them for another processor."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fedtiny.bundle.targets import Target
from fedtiny.errors import ExperimentError, RunError

OLDEST_MINOR = 11


def abi(python: str) -> str:
    """``cp311`` for "3.11". Raises ExperimentError for anything that fedtiny does not run on."""
    found = re.fullmatch(r"3\.(\d{1,2})", python)
    if not found or int(found[1]) < OLDEST_MINOR:
        raise ExperimentError(
            f"{python!r} is no version of Python that fedtiny runs on: name the board's, 3.11 "
            "(Debian 12) or later, without its third figure; `python3 --version` there says it"
        )
    return f"cp3{found[1]}"


def download(folder: Path, target: Target, python: str) -> list[Path]:
    """The target's wheels, fetched into ``folder``. Raises RunError with what pip says."""
    command = [sys.executable, "-m", "pip", "download", *_options(target, python)]
    pins = [f"{name}=={version}" for name, version in target.wheels.items()]
    done = subprocess.run(
        [*command, "--dest", str(folder), *pins], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunError(_complaint(target, python, done.stderr))
    return sorted(folder.glob("*.whl"))


def _options(target: Target, python: str) -> Iterator[str]:
    # Each wheel is named with its version, so there is nothing left for pip to resolve.
    yield from ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")
    yield from ("--implementation", "cp", "--python-version", python)
    for tag in (abi(python), "abi3", "none"):
        yield from ("--abi", tag)
    for platform in target.platforms:
        yield from ("--platform", platform)


def _complaint(target: Target, python: str, told: str) -> str:
    if "No module named pip" in told:
        return "the wheels are fetched by pip, which is missing here: python -m ensurepip"
    errors = [line for line in told.splitlines() if line.startswith("ERROR")] or [told.strip()]
    return (
        f"pip finds no wheels for {target.machine} and Python {python}; is there a network, and is "
        "this the Python of the board? It says:\n" + "\n".join(errors)
    )
