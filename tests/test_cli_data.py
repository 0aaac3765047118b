"""``fedtiny data``: what is there, whether it is right, and what is in it."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedtiny.cli_data import app
from fedtiny.data import files
from tests.data import small

NAMES = ("omniglot", "uci-har")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small files, and a table that has their digests."""
    rows = {}
    for name in NAMES:
        row = files.DATA_SETS[name]
        path = small.write(tmp_path / row.file, small.FILES[name]())
        rows[name] = replace(row, sha256=sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    monkeypatch.setattr(files, "DATA_SETS", rows)
    return tmp_path


def test_the_list_says_what_is_here_and_where_it_is_from(folder: Path) -> None:
    (folder / "omniglot.npz").unlink()
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["list"])
    assert result.exit_code == 0
    assert re.search(r"omniglot +omniglot\.npz +no .*MIT", result.stdout)
    size = (folder / "uci_har.npz").stat().st_size
    assert re.search(rf"uci-har +uci_har\.npz +{size:,} B +30 subjects", result.stdout)
    assert "omniglot: https://github.com/AntreasAntoniou/MatchingNetworks" in result.stdout


def test_right_files_pass_the_check(folder: Path) -> None:
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0
    assert result.stdout == "omniglot: right, 24 samples\nuci-har: right, 36 samples\n"


def test_what_is_not_here_is_wrong_only_when_it_is_asked_for(folder: Path) -> None:
    (folder / "omniglot.npz").unlink()
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0
    assert result.stdout == "omniglot: not here\nuci-har: right, 36 samples\n"
    assert CliRunner().invoke(app, ["check", "omniglot"]).exit_code == 6


def test_another_file_of_the_same_form_is_not_the_right_one(folder: Path) -> None:
    small.write(folder / "uci_har.npz", small.uci_har() | {"start": small.uci_har()["subject"]})
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 6
    assert "omniglot: right" in result.stdout
    assert re.search(r"uci-har: WRONG: .*uci_har\.npz has SHA-256 .*get it again", result.stderr)
    assert CliRunner().invoke(app, ["check", "omniglot"]).exit_code == 0


def test_a_description_has_the_figures(folder: Path) -> None:
    result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["describe", "omniglot"])
    assert result.exit_code == 0
    for fact in (
        r"samples +24, of 784 values",
        r"training, test +12 and 12",
        r"classes +6: Alpha 0, Alpha 1, .*Beta 5 *\n",
        r"samples a class +4 to 4, median 4",
        r"clients +8 ",
        r"samples a client +3 to 3",
        r"superclasses +2",
    ):
        assert re.search(fact, result.stdout), fact
