"""``fedtiny data``: what is there, whether it is right, and what is in it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedtiny.cli import app as command
from fedtiny.cli_data import app
from fedtiny.data import files
from fedtiny.experiment import Experiment
from tests.data import published, small

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
    assert "omniglot: https://github.com/brendenlake/omniglot" in result.stdout


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


# ---- converting ------------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with nothing in it, beside which there is a published one."""
    published.fashion_mnist(tmp_path / "published")
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path / "data"))
    return tmp_path


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(command, ["data", "convert", *map(str, arguments)])


def test_a_data_set_is_converted_into_the_data_folder(empty: Path) -> None:
    result = convert("fashion-mnist", empty / "published")
    made = empty / "data" / "fashion_mnist_2k.npz"
    assert result.exit_code == 0, result.output
    said = f"fashion-mnist: 30 samples in {made}, {made.stat().st_size:,} B\n"
    assert result.stdout == said
    checked = CliRunner().invoke(app, ["check", "fashion-mnist"])
    assert checked.stdout == "fashion-mnist: converted, 30 samples\n"


def test_a_data_set_is_converted_into_a_file_of_any_name(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDTINY_DATA")
    assert convert("fashion-mnist", empty / "published", "--out", empty / "f.npz").exit_code == 0
    assert (empty / "f.npz").is_file()


def test_a_conversion_needs_a_place(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDTINY_DATA")
    result = convert("fashion-mnist", empty / "published")
    assert result.exit_code == 6
    assert "set FEDTINY_DATA to the folder of the data sets, or name a file" in result.stderr


def test_what_cannot_be_converted_is_said_and_leaves_nothing(empty: Path) -> None:
    (empty / "published" / "t10k-images-idx3-ubyte.gz").unlink()
    result = convert("fashion-mnist", empty / "published")
    assert result.exit_code == 6
    assert "published has none of t10k-images-idx3-ubyte.gz" in result.stderr
    assert list((empty / "data").iterdir()) == []
    assert convert("no-such-set", empty).exit_code == 3


def test_a_damaged_converted_file_is_wrong(empty: Path) -> None:
    convert("fashion-mnist", empty / "published")
    path = empty / "data" / "fashion_mnist_2k.npz"
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 6
    assert "fashion-mnist: WRONG" in result.stderr


def test_an_interrupted_conversion_leaves_nothing(empty: Path) -> None:
    """A real Ctrl-C, as soon as the file is being written."""
    speech = published.speech_words(empty / "speech")
    folder = empty / "data"
    code = "import numpy as np, time; real = np.savez_compressed\n"
    code += "def slow(*a, **k): real(*a, **k); print('writing', flush=True); time.sleep(30)\n"
    code += "np.savez_compressed = slow; from fedtiny.cli import main; main()"
    arguments = [sys.executable, "-c", code, "data", "convert", "speech-words", str(speech)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert [path.suffix for path in folder.iterdir()] == [".part"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.endswith(b"fedtiny: interrupted\n")
    assert list(folder.iterdir()) == []


DEALT = """
seed = 3
[model]
build = "digits_mlp"
[data]
source = "label-skew-digits"
[strategy]
name = "fedavg"
[fleet]
devices = 3
"""


def test_the_samples_of_each_device_are_dealt_as_files_for_agents(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(DEALT)
    result = CliRunner().invoke(app, ["deal", str(file), "--out", str(tmp_path / "dealt")])
    assert result.exit_code == 0, result.output
    task = Experiment.load(file).build_task()
    for device in range(3):
        with np.load(tmp_path / f"dealt/device-{device}.npz") as rows:
            x, y = task.samples(3, 0, device, "support")
            np.testing.assert_array_equal(rows["x"], x)
            np.testing.assert_array_equal(rows["y"], y)
            assert len(rows["x_query"]) == len(rows["y_query"])


def test_a_device_that_the_experiment_has_not_is_dealt_nothing(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(DEALT)
    asked = ["data", "deal", str(file), "--out", str(tmp_path / "dealt"), "--device", "3"]
    result = CliRunner().invoke(command, asked)
    assert result.exit_code == 6
    assert "there is no device 3; " in result.output
    assert not (tmp_path / "dealt").exists()
