"""What is in a bundle, and what keeps one from being made."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import fedtiny
from fedtiny import bundle as bundling
from fedtiny.bundle import downloads, wheel, write_bundle
from fedtiny.bundle.targets import TARGETS, Target, target
from fedtiny.cli_bundle import bundle
from fedtiny.engine.runtime import build
from fedtiny.errors import ExperimentError, RunError

PI = TARGETS["aarch64"]
WHEELS = {"wheels/one-1.0-py3-none-any.whl": b"one", "wheels/two-2.0-py3-none-any.whl": b"two"}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that is there without a compiler."""

    def library(folder: Path, _: Target) -> Path:
        folder.mkdir()
        path = folder / "libfedtiny_base.so"
        path.write_bytes(b"\x7fELF")
        return path

    monkeypatch.setattr(wheel, "compile_runtime", library)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels that are there without a network."""

    def downloaded(folder: Path, chosen: Target, python: str) -> list[Path]:
        path = folder / f"{chosen.machine}-{downloads.abi(python)}.whl"
        path.write_bytes(b"wheel")
        return [path]

    monkeypatch.setattr(bundling, "download", downloaded)


# --- the archive


def test_the_manifest_has_the_sum_of_every_other_file(tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "bundle.tar.gz", PI, "3.11", WHEELS)
    with tarfile.open(made.file) as archive:
        files = {
            member.name.removeprefix("fedtiny-agent/"): archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
        }
    manifest = files.pop("MANIFEST").decode()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert manifest == "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    assert made.contents == sums
    board = {"install.sh", "fedtiny-agent.sh", "fedtiny-agent.service", "fedtiny-agent.env"}
    assert set(files) == {*WHEELS, *board, "README.md", "TARGET"}
    assert files["TARGET"] == b"3.11 aarch64-linux-gnu\n"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "first", PI, "3.11", WHEELS)
    again = write_bundle(tmp_path / "again", PI, "3.11", dict(reversed(WHEELS.items())))
    assert first.file.read_bytes() == again.file.read_bytes()
    assert first.sha256 == hashlib.sha256(again.file.read_bytes()).hexdigest()


def test_only_the_scripts_may_be_run(tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "bundle.tar.gz", PI, "3.11", WHEELS)
    with tarfile.open(made.file) as archive:
        programs = {Path(entry.name).name for entry in archive if entry.mode == 0o755}
        assert {(entry.uid, entry.uname, entry.mtime) for entry in archive} == {(0, "", 315532800)}
    assert programs == {"install.sh", "fedtiny-agent.sh"}


# --- the wheel


def test_the_wheel_has_the_package_and_its_record(tmp_path: Path, compiled: None) -> None:
    path = wheel.write_wheel(tmp_path, PI)
    assert path.name == f"fedtiny-{fedtiny.__version__}-py3-none-linux_aarch64.whl"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    notes = f"fedtiny-{fedtiny.__version__}.dist-info"
    rows = list(csv.reader(io.StringIO(files.pop(f"{notes}/RECORD").decode())))
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        for name, content in files.items()
    }
    of_files = [[name, f"sha256={digests[name]}", str(len(files[name]))] for name in files]
    assert rows == [*of_files, [f"{notes}/RECORD", "", ""]]
    assert files["fedtiny/engine/runtime/lib/libfedtiny_base.so"] == b"\x7fELF"
    assert b"fedtiny-agent = fedtiny.agent.cli:main" in files[f"{notes}/entry_points.txt"]
    assert f"Name: fedtiny\nVersion: {fedtiny.__version__}" in files[f"{notes}/METADATA"].decode()
    assert f"{notes}/licenses/LICENSE" in files
    sources = {str(file.relative_to(wheel.PACKAGE.parent)) for file in wheel.PACKAGE.rglob("*.py")}
    assert sources <= set(files)
    assert [name for name in files if "__pycache__" in name or name.endswith("_v1.so")] == []


# --- what keeps one from being made


def test_a_board_without_wheels_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(ExperimentError, match=r"'armv6l': did you mean 'armv7l'\? .*ARMv6"):
        target("armv6l")


@pytest.mark.parametrize("python", ["3.10", "2.7", "3", "3.11.2", "three", "4.11"])
def test_a_python_that_fedtiny_does_not_run_on_is_refused(python: str) -> None:
    with pytest.raises(ExperimentError, match=rf"'{python}' is no version of Python"):
        downloads.abi(python)


def test_without_zig_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"aarch64 by zig.*pip install 'fedtiny\[bundle\]'"):
        wheel.compile_runtime(tmp_path, PI)


def test_what_the_compiler_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> list[Path]:
        raise build.BuildError("zig cc\nno such processor")

    monkeypatch.setattr(build, "build", refuse)
    with pytest.raises(RunError, match="does not compile for aarch64: zig cc\nno such processor"):
        wheel.compile_runtime(tmp_path, PI)


def test_a_wheel_that_pip_does_not_find_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RunError, match=r"no wheels for armv7l and Python 3\.11.*\nERROR.*grpcio=="):
        downloads.download(tmp_path, TARGETS["armv7l"], "3.11")


def test_a_missing_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lonely = tmp_path / "python"
    lonely.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    lonely.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(lonely))
    with pytest.raises(RunError, match="python -m ensurepip"):
        downloads.download(tmp_path, PI, "3.11")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    out = tmp_path / "missing" / "bundle.tar.gz"
    with pytest.raises(ExperimentError, match=r"missing/bundle.tar.gz cannot be written: No such"):
        write_bundle(out, PI, "3.11", WHEELS)


# --- the command


@pytest.fixture
def command(compiled: None, fetched: None) -> typer.Typer:
    app = typer.Typer()
    app.command()(bundle)
    return app


def test_the_command_says_what_it_made_and_what_to_do(
    command: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["--for", "armv7l", "--python", "3.13"])
    assert result.exit_code == 0, result.output
    name = f"fedtiny-agent-{fedtiny.__version__}-cp313-armv7l.tar.gz"
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert result.stdout.startswith(f"{name}: ")
    assert f"SHA-256 {digest}\n" in result.stdout
    assert f"tar xf {name}\n  sudo fedtiny-agent/install.sh\n" in result.stdout


def test_the_command_prints_json(command: typer.Typer, tmp_path: Path) -> None:
    out = tmp_path / "pi.tar.gz"
    result = CliRunner().invoke(command, ["--for", "aarch64", "--out", str(out), "--json"])
    printed = json.loads(result.stdout)
    assert printed["file"] == str(out)
    assert printed["nbytes"] == out.stat().st_size
    assert (printed["machine"], printed["python"]) == ("aarch64", "3.11")
    assert "wheels/aarch64-cp311.whl" in printed["contents"]
