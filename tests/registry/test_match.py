from fedtiny.registry.match import misfits
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
