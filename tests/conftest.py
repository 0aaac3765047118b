import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler.loadscope import LoadScopeScheduling

settings.register_profile("fedtiny", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("fedtiny")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets, which are too large to be kept here."""
    folder = os.environ.get("FEDTINY_DATA")
    if not folder:
        pytest.skip("set FEDTINY_DATA to the folder of the data sets")
    return Path(folder)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """What shares fixtures runs in one process: a file, or a folder of emulated boards.

    The long runs of `test_learning.py` share nothing, and each may run anywhere.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path.endswith("test_learning.py"):
            return nodeid
        return "boards" if "/pi/" in path else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """With several processes, tests are dealt out by file."""
    return ByFile(config, log)
