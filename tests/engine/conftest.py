"""The builds of the C runtime that must agree in every bit."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedtiny.engine import native
from fedtiny.engine.runtime import build

BUILDS: Mapping[str, tuple[str, ...]] = {
    "plain": ("-O0",),
    "small": ("-O2", "-DFT_SMALL"),
    "small, no FPU": ("-Os", "-DFT_SMALL", "-DFT_NO_FPU", "-fno-tree-vectorize"),
}


@pytest.fixture(scope="session")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The libraries that ship; and the runtime without its host part, once a build: whichever
    process of the tests comes first compiles it for all."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "runtimes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = _made(folder / "runtimes")
    shipped = {name: native.LIBRARIES / f"libfedtiny_{name}.so" for name in build.variants_here()}
    return made | shipped


def _made(folder: Path) -> dict[str, Path]:
    libraries = {name: folder / f"{name}.so" for name in BUILDS}
    if folder.exists():
        return libraries
    scratch = folder.with_name("runtimes.scratch")
    scratch.mkdir(exist_ok=True)
    sources = [str(path) for path in build.sources() if path.parent == build.HERE]

    def compile_one(name: str) -> None:
        flags = [*build.FLAGS, *BUILDS[name], "-shared", "-o", str(scratch / f"{name}.so")]
        subprocess.run([*build.compiler(), *flags, *sources, "-lm"], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, BUILDS))
    scratch.rename(folder)
    return libraries
