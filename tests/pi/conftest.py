from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from fedtiny.bundle import Bundle, make_bundle
from tests.pi.board import INSTALLER, KINDS, Pi, missing_tools, sysroot


@dataclass(frozen=True)
class Installed:
    """A Pi after the installer, and what that printed."""

    pi: Pi
    bundle: Bundle
    printed: str


@pytest.fixture(scope="session")
def emulator() -> None:
    """Everything that an emulated Pi needs."""
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with ThreadPoolExecutor() as pool:
        list(pool.map(sysroot, KINDS.values()))


@pytest.fixture(scope="session")
def boards(emulator: None, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Installed]:
    """One Pi of each kind on which its bundle was installed."""

    def installed(machine: str) -> Installed:
        folder = tmp_path_factory.mktemp(machine)
        pi = Pi.boot(machine, folder / "board")
        bundle = make_bundle(machine, out=folder / "bundle.tar.gz")
        pi.unpack(bundle)
        printed, complaints = pi.run(INSTALLER)
        assert complaints == ""
        return Installed(pi, bundle, printed)

    with ThreadPoolExecutor() as pool:
        return dict(zip(KINDS, pool.map(installed, KINDS), strict=True))
