import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.simulator.clock import VirtualClock, format_time


def test_a_clock_shows_what_it_was_advanced_to() -> None:
    clock = VirtualClock()
    assert clock.now == 0
    clock.advance_to(2.5)
    clock.advance_to(2.5)
    assert clock.now == 2.5


@pytest.mark.parametrize("time", [9.0, float("nan")])
def test_a_clock_never_goes_back(time: float) -> None:
    clock = VirtualClock(10.0)
    with pytest.raises(ValueError, match=r"shows 10\.0 s and cannot go back"):
        clock.advance_to(time)
    assert clock.now == 10.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.34, "9.3 s"),
        (59.99, "00:01:00"),
        (60, "00:01:00"),
        (7509.9, "02:05:09"),
        (86399, "23:59:59"),
        (86400, "1 d 00:00:00"),
        (3 * 86400 + 7509, "3 d 02:05:09"),
    ],
)
def test_times_are_written_in_the_units_they_need(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@given(st.integers(60, 10**9))
def test_a_written_time_can_be_read_back(seconds: int) -> None:
    days, _, clock = format_time(seconds).rpartition(" d ")
    hour, minute, second = map(int, clock.split(":"))
    assert int(days or 0) * 86400 + hour * 3600 + minute * 60 + second == seconds
