"""What an update may say when masks, growth or statistics were asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.device.visit import Key
from fedtiny.layout import Layout, Parameter, Ranges
from fedtiny.masks import Mask, remembered
from fedtiny.server.admission import Expected, flaw_of, shared_masks
from fedtiny.transforms.chain import transformed
from fedtiny.transforms.sparsifiers import shared_mask
from fedtiny.transforms.table import parse
from fedtiny.values import (
    CALIBRATE,
    GRADIENT,
    RANGES,
    SUMS,
    VALUES,
    VOTES,
    FeatureSums,
    Instruction,
    Phase,
    Quantised,
    Update,
)

LAYOUT = Layout.of(
    [
        Parameter("conv.weight", (40,)),
        Parameter("conv.bias", (4,)),
        Parameter("fc.weight", (30,)),
        Parameter("bn.mean", (3,), "statistics"),
        Parameter("bn.var", (3,), "statistics"),
    ]
)
WHOLE: Ranges = ((0, 80),)
SPARSE = Mask.draw(LAYOUT, {"conv.weight": 4, "fc.weight": 3}, 1)
DENSER = Mask.draw(LAYOUT, {"conv.weight": 8, "fc.weight": 6}, 2)
MASKS = ((0.1, SPARSE.blob), (0.2, DENSER.blob))
MEASURES = {"loss_sum": 1.0, "steps": 3.0}
SEED = 7
TRAIN = Instruction(phases=(Phase(0.1, 3),), masks=MASKS)


@dataclass(frozen=True)
class Board:
    """Of a Program, what admission looks at."""

    density: float
    batch: int = 2
    layout: Layout = LAYOUT
    range_parameters: tuple[Parameter, ...] = ()
    statistics_floats: int = LAYOUT.statistics_floats

    def sent_ranges(self, asked: Instruction) -> Ranges:
        return WHOLE


def flaw(update: Update, asked: Instruction) -> str:
    boards = (Board(0.1), Board(0.2))
    expected = Expected.of(asked, boards, LAYOUT, lambda b: remembered(b, LAYOUT), SEED)  # type: ignore[arg-type]
    return flaw_of(update, expected)


def trained(mask: Mask | None) -> Update:
    count = mask.count if mask else 80
    return Update(1, 2, 0, 0, 5, bytes(4 * count), WHOLE, MEASURES, mask)


def grown(*places: int, value: float = 0.5) -> Update:
    values = np.full(len(places), value, np.float32).tobytes()
    packed = np.array(places, "<u4").tobytes()
    return Update(1, 2, 0, 0, 5, values, WHOLE, MEASURES, places=packed)


def test_each_class_of_devices_sends_the_values_of_its_mask() -> None:
    assert flaw(trained(SPARSE), TRAIN) == flaw(trained(DENSER), TRAIN) == ""
    other = Mask.draw(LAYOUT, {"conv.weight": 4, "fc.weight": 3}, 9)
    for mask in (None, other):
        assert "not for the mask that was given" in flaw(trained(mask), TRAIN)


def test_an_update_of_a_dense_round_has_no_mask() -> None:
    dense = replace(TRAIN, masks=())
    assert flaw(trained(None), dense) == ""
    assert "not for the mask" in flaw(trained(SPARSE), dense)


@given(st.data())
def test_a_mask_that_moved_has_as_many_live_values_in_each_parameter(data: st.DataObject) -> None:
    asked = replace(TRAIN, masks=MASKS[:1], grow=(("fc.weight", 2),), returns=VALUES)
    expected = Expected.of(asked, [Board(0.1)], LAYOUT, lambda b: remembered(b, LAYOUT), SEED)  # type: ignore[list-item]
    live = SPARSE.coordinates(WHOLE).tolist()
    dead = sorted(set(range(80)) - set(live))
    die = data.draw(st.lists(st.sampled_from(live), max_size=3, unique=True))
    grow = data.draw(st.lists(st.sampled_from(dead), max_size=3, unique=True))
    moved = SPARSE.moved(die, grow)

    def within(places: list[int], name: str) -> int:
        p = LAYOUT[name]
        return sum(p.offset <= at < p.offset + p.size for at in places)

    fits = all(within(die, p.name) == within(grow, p.name) for p in LAYOUT.parameters)
    fits |= moved == SPARSE
    only_fc = all(
        within(die, p.name) == within(grow, p.name) for p in LAYOUT.parameters
        if p.name != "fc.weight"
    )  # fmt: skip
    fewer = within(grow, "fc.weight") <= within(die, "fc.weight")
    assert (flaw_of(trained(moved), expected) == "") == (fits or (only_fc and fewer))


def test_what_grows_is_dead_and_of_a_named_parameter_and_no_more_than_asked() -> None:
    asked = replace(TRAIN, masks=MASKS[:1], returns=GRADIENT, grow=(("fc.weight", 2),))
    dead = [at for at in range(44, 74) if not SPARSE.bools[at]]
    assert flaw(grown(dead[0], dead[-1]), replace(asked, masks=MASKS)) == ""
    assert flaw(grown(), replace(asked, masks=MASKS)) == ""
    alive = next(at for at in range(44, 74) if SPARSE.bools[at])
    one = Expected.of(asked, [Board(0.1)], LAYOUT, lambda b: remembered(b, LAYOUT), SEED)  # type: ignore[list-item]
    assert f"{alive:,} is live" in flaw_of(grown(alive), one)
    outside = next(at for at in range(40) if not SPARSE.bools[at])
    assert "not to grow" in flaw_of(grown(outside), one)
    assert "fc.weight has 3; at most 2" in flaw_of(grown(*dead[:3]), one)
    assert "it has none" in flaw_of(trained(SPARSE), one)


@pytest.mark.parametrize(("steps", "samples", "most"), [(3, 5, 3), (0, 5, 3), (0, 4, 2)])
def test_no_more_steps_are_told_than_the_phases_have(steps: int, samples: int, most: int) -> None:
    # Fednova divides by them, and scales the model by their mean; a batch holds 2 samples.
    asked = Instruction(phases=(Phase(0.1, steps),))
    update = replace(trained(None), samples=samples)
    for found in (most, most + 1, 2.0**40):
        told = flaw(replace(update, measures={"loss_sum": 1.0, "steps": found}), asked)
        assert told == ("" if found == most else f"measures: steps is {found:g}; at most "
                        f"{most:,} are due")  # fmt: skip


def test_votes_have_no_values() -> None:
    asked = replace(TRAIN, masks=MASKS[:1], returns=VOTES, grow=(("fc.weight", 2),))
    one = Expected.of(asked, [Board(0.1)], LAYOUT, lambda b: remembered(b, LAYOUT), SEED)  # type: ignore[list-item]
    place = next(at for at in range(44, 74) if not SPARSE.bools[at])
    assert flaw_of(grown(place, value=1.0), one) == ""
    assert "places alone" in flaw_of(grown(place), one)


def test_places_are_refused_where_values_are_asked_for() -> None:
    assert "some places" in flaw(grown(3), TRAIN)


@pytest.mark.parametrize(("count", "fits"), [(18, True), (19, False), (80, False)])
def test_statistics_are_a_row_for_each_candidate(count: int, fits: bool) -> None:
    asked = Instruction(CALIBRATE, candidates=(1, 2, 3))
    update = Update(1, 2, 0, 0, 5, bytes(4 * count), ((0, count),))
    assert (flaw(update, asked) == "") == fits


@pytest.mark.parametrize(("count", "holds_int8", "fits"),
    [(4, False, True), (0, True, True), (4, True, False), (0, False, False), (6, False, False)],
)  # fmt: skip
def test_ranges_come_whole_from_float32_and_not_at_all_from_int8(
    count: int, holds_int8: bool, fits: bool
) -> None:
    ranges = [Parameter("x.range", (2,), "frozen"), Parameter("conv.range", (2,), "frozen")]
    layout = Layout.of([Parameter("conv.weight", (40,)), *ranges])
    board: Any = Board(1.0, 2, layout, tuple(ranges) if holds_int8 else ())
    asked = Instruction(CALIBRATE, returns=RANGES)
    expected = Expected.of(asked, [board], layout, lambda b: remembered(b, layout), SEED)
    update = Update(1, 2, 0, 0, 5, bytes(4 * count), ((0, count),) if count else ())
    assert (flaw_of(update, expected) == "") == fits


@pytest.mark.parametrize(("count", "fits"), [(24, True), (23, False), (25, False)])
def test_sums_of_features_are_whole(count: int, fits: bool) -> None:
    # 5 features and a count for each of 4 classes
    layout = Layout.of([Parameter("head.weight", (5, 4)), Parameter("head.bias", (4,))])
    asked = Instruction(SUMS, sums=FeatureSums("head.weight"))
    board: Any = Board(1.0, layout=layout)
    expected = Expected.of(asked, [board], layout, lambda b: remembered(b, layout), SEED)
    update = Update(1, 2, 0, 0, 5, bytes(4 * count), ((0, count),))
    assert (flaw_of(update, expected) == "") == fits


@pytest.mark.parametrize(
    ("chain", "update", "told"),
    [
        (["topk:0.1"], {"count": 8, "places": 8}, ""),
        (["topk:0.1"], {"count": 7, "places": 7}, "places: it has 7; 8 are asked for"),
        (["topk:0.1"], {"count": 80}, "places: it has none; 8 are asked for"),
        (["topk:1"], {"count": 80}, ""),
        (["int8"], {"count": 80, "form": "int8"}, ""),
        (["qsgd:5"], {"count": 80, "form": "int8"}, ""),
        (["int8"], {"count": 80}, "values: they are float32; int8 is asked for"),
        (["sign"], {"count": 80, "form": "int8"}, "values: they are int8; sign is asked for"),
        (["clip:1"], {"count": 80, "form": "int8"}, "they are int8; float32 is asked for"),
        (["clip:1"], {"count": 8, "places": 8}, "places: it has values of some places"),
    ],
)
def test_what_comes_is_what_the_transforms_leave(
    chain: list[str], update: dict[str, Any], told: str
) -> None:
    asked = Instruction(phases=(Phase(0.1, 3),), transforms=parse(chain))
    count, form, places = update["count"], update.get("form", ""), update.get("places")
    sent = replace(
        trained(None), values=bytes(4 * count),
        places=np.arange(places, dtype="<u4").tobytes() if places else None,
        quantised=Quantised(form, 64, bytes(8), bytes(count)) if form else None,
    )  # fmt: skip
    found = flaw(sent, asked)
    assert told in found
    assert bool(told) == bool(found)


@pytest.mark.parametrize("form", ["int8", "sign"])
def test_a_device_that_trains_nothing_of_the_drawn_mask_sends_no_values(form: str) -> None:
    asked = Instruction(phases=(Phase(0.1, 3),), transforms=parse(["randomk:0.02", form]))
    mask = shared_mask(SEED, 0, 80, 0.02)  # 2 of the 80
    start = next(at for at in range(79) if not mask.bools[at : at + 2].any())
    ranges = ((start, start + 2),)
    sent = transformed(asked, bytes(8), bytes(8), ranges, None, 80, Key(SEED, 0, 2))
    assert sent.values == b""
    update = Update(1, 2, 0, 0, 5, b"", ranges, MEASURES, sent.mask, quantised=sent.quantised)
    assert flaw(update, asked) == ""


def test_a_mask_that_all_draw_is_that_of_the_round_of_the_lease() -> None:
    asked = Instruction(phases=(Phase(0.1, 3),), transforms=parse(["randomk:0.25"]))
    drawn = [shared_mask(SEED, round, 80, 0.25) for round in (0, 4)]
    for round, mask in zip((0, 4), drawn, strict=True):
        assert flaw(replace(trained(mask), round=round), asked) == ""
        other = replace(trained(mask), round=3)
        assert "not for the mask" in flaw(other, asked)
    assert "not for the mask" in flaw(trained(None), asked)
    assert list(shared_masks(asked, SEED, [0, 4], 80).values()) == drawn
    assert shared_masks(TRAIN, SEED, [0, 4], 80) == {}
