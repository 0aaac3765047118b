"""The picture of the arena: everything stands in it once, and it is the same every time."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.engine import zoo
from fedtiny.engine.builder import Net
from fedtiny.engine.compile import build
from fedtiny.engine.liveness import lifetimes, live_bytes
from fedtiny.errors import ExperimentError
from fedtiny.report.arena import blocks, draw
from tests.engine.nets import image_nets, nets


def drawn(net: Net, path: Path) -> bytes:
    built = build(net, loss="mse")
    draw(built.graph, built.memory, built.program.report(), path)
    return path.read_bytes()


@settings(max_examples=60)
@given(st.one_of(nets(), image_nets()), st.integers(1, 2))
def test_blocks_fill_the_arena_as_the_plan_says(net: Net, batch: int) -> None:
    built = build(net, loss="mse", batch=batch)
    found = list(blocks(built.graph, built.memory))
    assert sorted(b.name for b in found) == sorted(lifetimes(built.graph))
    for one, other in combinations(found, 2):
        apart_in_time = one.right <= other.left or other.right <= one.left
        above, below = (
            max(one, other, key=lambda b: b.offset),
            min(one, other, key=lambda b: b.offset),
        )
        assert apart_in_time or below.offset + below.nbytes <= above.offset
    # What takes the place of another does so in the middle of an op.
    for index, alive in enumerate(live_bytes(built.graph)):
        assert alive == sum(b.nbytes for b in found if b.left <= index + 0.75 < b.right)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    one, other = (drawn(zoo.har_conv(), tmp_path / f"{name}.{suffix}") for name in "ab")
    assert one == other


def test_few_ops_are_named_and_the_figures_are_said(tmp_path: Path) -> None:
    net = zoo.omniglot_conv(norm="none", pool=True)
    built = build(net, loss="mse")
    words = re.findall(r"<text[^>]*>([^<]+)</text>", drawn(net, tmp_path / "a.svg").decode())
    assert [op.kind for op in built.graph.ops] == words[: len(built.graph.ops)]
    assert f"arena {built.memory.arena_bytes:,} B" in words
    assert f"lower bound {built.lower_bound:,} B, in op 25: conv_dx of d.relu1" in words
    assert {"relu1", "d.relu1", "parameters", "made again"} <= set(words)


def test_of_many_ops_the_largest_tensors_are_named(tmp_path: Path) -> None:
    words = re.findall(
        r"<text[^>]*>([^<]+)</text>", drawn(zoo.ds_cnn(), tmp_path / "a.svg").decode()
    )
    assert "op, in the order of execution" in words
    assert "d.batch_norm4" in words


def test_a_picture_is_png_or_svg(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"cannot draw a\.pdf; the picture is a \.png or"):
        drawn(zoo.sine_mlp(), tmp_path / "a.pdf")
