import pytest

from fedtiny.errors import ExperimentError
from fedtiny.registry.profiles import BOARDS, FIGURES, board


@pytest.mark.parametrize("name", BOARDS)
def test_every_figure_of_every_board_is_positive_and_has_a_source(name: str) -> None:
    profile = BOARDS[name]
    assert all(getattr(profile, figure) > 0 for figure in FIGURES)
    assert set(profile.sources) == set(FIGURES)
    assert all(len(source) > 10 for source in profile.sources.values())


@pytest.mark.parametrize("name", BOARDS)
def test_computing_and_sending_cost_more_power_than_waiting(name: str) -> None:
    assert BOARDS[name].idle_w < min(BOARDS[name].active_w, BOARDS[name].radio_w)


def test_the_smallest_board_is_an_arduino_nano_33_ble() -> None:
    assert board("cortex-m4").ram_bytes == 256 * 1024
    assert board("cortex-m4").flash_bytes == 1024 * 1024


def test_later_boards_are_faster() -> None:
    speeds = [BOARDS[name].macs_per_s for name in ("cortex-m4", "pi-zero-2w", "pi-4", "pi-5")]
    assert speeds == sorted(speeds)


def test_a_card_says_what_the_board_can_do() -> None:
    card = board("esp32-s3").card()
    assert (card.profile, card.ram_bytes) == ("esp32-s3", 512 * 1024)
    assert card.uplink_bps == board("esp32-s3").uplink_bps


def test_a_changed_figure_has_a_changed_source() -> None:
    changed = board("pi-4").changed("measured here", macs_per_s=1e9)
    assert (changed.macs_per_s, changed.sources["macs_per_s"]) == (1e9, "measured here")
    assert changed.sources["ram_bytes"] == board("pi-4").sources["ram_bytes"]
    assert board("pi-4").macs_per_s != 1e9


def test_an_unknown_board_is_named_with_its_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"'cortex-m5'.*did you mean 'cortex-m[47]'.*pi-5"):
        board("cortex-m5")
