import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.registry.match import fits, misfits
from fedtiny.values import DeviceCard, Footprint


def footprint(ram: int, flash: int) -> Footprint:
    return Footprint("p", "l", ram, flash, macs_per_step=1, macs_per_forward=1, batch=1)


def card(ram: int, flash: int) -> DeviceCard:
    return DeviceCard("small-board", ram, flash, 1e6, 1e6, 1e6)


def test_a_program_fits_a_device_that_has_exactly_its_bytes() -> None:
    assert misfits(footprint(1000, 2000), card(1000, 2000)) == ()


def test_a_misfit_is_told_in_bytes_with_a_remedy() -> None:
    (reason,) = misfits(footprint(301056, 10), card(262144, 10))
    assert "301,056 B of RAM" in reason
    assert "small-board has 262,144 B" in reason
    assert "lower the batch" in reason


def test_ram_and_flash_are_told_apart() -> None:
    assert len(misfits(footprint(2, 2), card(1, 1))) == 2
    (reason,) = misfits(footprint(1, 2), card(1, 1))
    assert "flash" in reason


_BYTES = st.integers(0, 4)
_PAIRS = st.lists(st.tuples(_BYTES, _BYTES), max_size=4)


@given(_PAIRS, _PAIRS)
def test_the_columns_say_what_each_pair_says(
    needed: list[tuple[int, int]], given_bytes: list[tuple[int, int]]
) -> None:
    programs, cards = [footprint(*p) for p in needed], [card(*c) for c in given_bytes]
    each = [[not misfits(program, device) for program in programs] for device in cards]
    table = fits(programs, cards)
    assert table.shape == (len(cards), len(programs))
    np.testing.assert_array_equal(table, np.array(each, bool).reshape(table.shape))
