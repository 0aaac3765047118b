from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.desk import Desk, Opened, experiment


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    desks: list[Desk] = []

    def make(*settings: str, devices: int = 4) -> Desk:
        desks.append(Desk(tmp_path / f"fleet-{len(desks)}", experiment(*settings), devices=devices))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()
