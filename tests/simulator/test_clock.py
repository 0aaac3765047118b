import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.simulator.clock import format_time


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
