"""``fedtiny compile``: what a model needs, in a table, in JSON, in a file and in a picture."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedtiny.cli import app
from fedtiny.engine.compile import compile
from fedtiny.engine.program import Program
from fedtiny.engine.zoo import digits_mlp

DIGITS = "fedtiny.engine.zoo:digits_mlp"
PARTS = ("parameters", "arena", "state", "sample", "stack", "reserve")

OWN = """
import torch
from torch import nn

def pair():
    return net(), torch.zeros(1, 1, 8, 8)

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 3)).eval()

def with_attribute():
    module = net()
    module.example_input = torch.zeros(1, 1, 8, 8)
    return module

def refused():
    return nn.Sequential(nn.Linear(4, 3), nn.GELU()), torch.zeros(1, 4)
"""


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["compile", *arguments])


def told(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own in the folder where the command runs."""
    (tmp_path / "my_torch_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield "my_torch_nets"
    sys.modules.pop("my_torch_nets", None)


def test_the_parts_of_the_table_add_up() -> None:
    result = run(DIGITS, "--ram", "16KiB", "--batch", "4")
    assert result.exit_code == 0
    table = result.stdout.partition("flash")[0]
    found = {
        name: int(nbytes.replace(",", ""))
        for name, nbytes in re.findall(r"^(\w+) +([\d,]+) ", table, re.MULTILINE)
    }
    assert sum(found[part] for part in PARTS) == found["needed"]
    assert found["given"] == 16384
    assert "parameters                     2,410, of which 2,410 train" in result.stdout


def test_the_peak_is_named_with_what_is_alive() -> None:
    result = run(DIGITS, "--ram", "16KiB")
    # The hidden layer and its gradient (32 floats each), the gradient of the logits (10), the loss.
    assert "linear_dx of d.relu1: 300 B" in result.stdout
    assert re.search(r"relu1 +1 x 32 +128\nd\.relu1 +1 x 32 +128\n", result.stdout)


def test_json_has_the_figures_of_the_program() -> None:
    report = told(DIGITS, "--ram", "16KiB", "--plan", "last:1", "--reserve", "1KiB")
    program = compile(
        digits_mlp(), loss="cross_entropy", ram="16KiB", plan="last:1", reserve="1KiB"
    )
    assert {key: report[key] for key in program.report()} == program.report()
    assert report["digest"] == program.digest
    assert report["fits"] is True
    assert report["peak"]["alive_bytes"] == report["lower_bound_bytes"]


def test_a_model_is_compiled_as_int8() -> None:
    options = ("--dtype", "int8", "--head", "int8", "--plan", "biases:1")
    report = told(DIGITS, "--ram", "64KiB", *options)
    program = compile(
        digits_mlp(), loss="cross_entropy", ram="64KiB", plan="biases:1", dtype="int8", head="int8"
    )
    assert (report["digest"], report["dtype"], report["plan"]) == (
        program.digest,
        "int8",
        "biases:1",
    )
    text = run(DIGITS, "--ram", "64KiB", *options).stdout
    assert re.search(r"dtype +int8", text)
    assert f"frozen {program.report()['frozen_bytes']:,}" in text
    refused = run(DIGITS, "--ram", "64KiB", "--head", "int8")
    assert "head='int8' is for dtype='int8'" in refused.stderr


def test_first_layers_run_patch_by_patch() -> None:
    net, asked = "fedtiny.engine.zoo:cifar_conv", ("--ram", "1MiB", "--plan", "last:1")
    whole, cut = (told(net, *asked, "--patches", n) for n in ("1", "2"))
    assert (whole["patches"], cut["patches"]) == (1, 2)
    assert cut["arena_bytes"] < whole["arena_bytes"]
    assert re.search(r"patches +2 x 2, up to \w+ *\n", run(net, *asked, "--patches", "2").stdout)
    refused = run(DIGITS, "--ram", "64KiB", "--patches", "many")
    assert "patches must be 1 or more along each side, or 'auto'; got many" in refused.stderr


def test_what_does_not_fit_is_shown_and_has_the_exit_code_of_a_model() -> None:
    result = run(DIGITS, "--ram", "6KiB")
    assert result.exit_code == 4
    assert re.search(r"needed +[\d,]+ +1\d\d %", result.stdout)
    assert "B of 6,144 B RAM" in result.stderr
    assert "train fewer layers" in result.stderr
    result = run(DIGITS, "--ram", "6KiB", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["fits"] is False


def test_the_image_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "net.fti"
    report = told(DIGITS, "--ram", "16KiB", "--loss", "mse", "--out", str(path))
    program = Program(path.read_bytes())
    assert (program.digest, program.loss) == (report["digest"], "mse")


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "net.fti"
    assert run(DIGITS, "--ram", "6KiB", "--out", str(path)).exit_code == 4
    assert not path.exists()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_arena_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"arena.{suffix}"
    told(DIGITS, "--ram", "16KiB", "--explain", str(path))
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_torch_modules_of_ones_own_are_compiled(own: str) -> None:
    pair, attribute = (
        told(f"{own}:{name}", "--ram", "64KiB") for name in ("pair", "with_attribute")
    )
    assert pair == attribute
    assert pair["parameters"] == 4 * 9 + 4 + 4 * 4 + 144 * 3 + 3
    folded = told(f"{own}:pair", "--ram", "64KiB", "--fold")
    assert folded["parameters"] == 4 * 9 + 4 + 144 * 3 + 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([":net", "--ram", "64KiB"], 4, "a torch module needs an example input"),
        ([":refused", "--ram", "64KiB"], 4, r"1 \(GELU\): gelu .* use ReLU"),
        ([":nothing", "--ram", "64KiB"], 3, "has no 'nothing'"),
        ([":pair", "--ram", "64KiB", "--max-model", "1KB"], 4, "raise max_model"),
        ([":pair", "--ram", "much"], 3, "'much' is not a byte size"),
        ([":pair"], 2, "Missing option '--ram'"),
    ],
)
def test_what_is_wrong_is_said(own: str, arguments: list[str], code: int, message: str) -> None:
    result = run(own + arguments[0], *arguments[1:])
    assert result.exit_code == code
    assert re.search(message, result.stderr)
