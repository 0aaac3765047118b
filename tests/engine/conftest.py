"""The builds of the C runtime that must agree in every bit."""

from __future__ import annotations

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
    "small, no vectors": ("-Os", "-DFT_SMALL", "-fno-tree-vectorize"),
}


@pytest.fixture(scope="session")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The libraries that ship; and the runtime without its host part, once a build."""
    folder = tmp_path_factory.mktemp("runtimes")
    sources = [str(path) for path in build.sources() if path.parent == build.HERE]

    def compiled(name: str) -> Path:
        library = folder / f"{name}.so"
        flags = [*build.FLAGS, *BUILDS[name], "-shared", "-o", str(library)]
        subprocess.run([*build.compiler(), *flags, *sources, "-lm"], check=True)
        return library

    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(BUILDS, pool.map(compiled, BUILDS), strict=True))
    shipped = {name: native.LIBRARIES / f"libfedtiny_{name}.so" for name in build.variants_here()}
    return made | shipped
