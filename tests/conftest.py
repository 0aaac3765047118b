import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fedtiny", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("fedtiny")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets, which are too large to be kept here."""
    folder = os.environ.get("FEDTINY_DATA")
    if not folder:
        pytest.skip("set FEDTINY_DATA to the folder of the data sets")
    return Path(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares fixtures runs in one process, when there are several.

    The long runs of one file share nothing, and each may run anywhere.
    """
    for item in items:
        if item.path.name != "test_learning.py":
            shared = item.path.parent if item.path.parent.name == "pi" else item.path
            item.add_marker(pytest.mark.xdist_group(shared.stem))
