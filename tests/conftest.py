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
