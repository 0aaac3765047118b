from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny import varints
from fedtiny.errors import WireError

numbers = st.lists(
    st.one_of(st.integers(0, 300), st.integers(0, 2**35 - 1), st.sampled_from([127, 128, 2**14])),
    max_size=40,
)


@pytest.fixture(params=["with NumPy", "without"])
def numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(varints, "has_numpy", lambda: request.param == "with NumPy")
    return str(request.param)


def obvious(found: list[int]) -> bytes:
    """Seven bits a byte, the low ones first; the highest bit says that more follow."""
    out = []
    for number in found:
        digits = [number >> 7 * k & 127 for k in range(5)]
        while len(digits) > 1 and not digits[-1]:
            digits.pop()
        out += [digit + 128 for digit in digits[:-1]] + digits[-1:]
    return bytes(out)


@pytest.mark.usefixtures("numpy")
@pytest.mark.parametrize(
    ("found", "data"),
    [
        ([], ""),
        ([0], "00"),
        ([1, 127, 128], "017f8001"),
        ([300], "ac02"),  # 300 = 2 * 128 + 44, and 44 + 128 = 0xac
        ([2**35 - 1], "ffffffff7f"),
    ],
)
def test_a_number_takes_seven_bits_a_byte(found: list[int], data: str) -> None:
    assert varints.write(found).hex() == data
    assert list(varints.read(bytes.fromhex(data))) == found


@given(numbers)
def test_numbers_come_back_and_their_bytes_are_known_before(found: list[int]) -> None:
    for has_numpy in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(varints, "has_numpy", lambda has=has_numpy: has)
            data = varints.write(found)
            assert data == obvious(found)
            assert varints.nbytes(found) == len(data)
            assert list(varints.read(data)) == found


@given(st.one_of(st.binary(max_size=20), st.lists(st.sampled_from([0, 1, 128, 255])).map(bytes)))
def test_whatever_is_read_is_what_would_have_been_written(data: bytes) -> None:
    told = []
    for has_numpy in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(varints, "has_numpy", lambda has=has_numpy: has)
            try:
                told.append([int(number) for number in varints.read(data)])
            except WireError:
                told.append([-1])
    assert told[0] == told[1]
    assert told[0] == [-1] or obvious(told[0]) == data


@pytest.mark.usefixtures("numpy")
@pytest.mark.parametrize("data", ["80", "0180", "8000", "ff00", "808080808001", "ffffffffffff"])
def test_a_number_that_is_cut_off_or_too_long_is_refused(data: str) -> None:
    with pytest.raises(WireError, match="cut off, too long, or not in its shortest form"):
        varints.read(bytes.fromhex(data))


@pytest.mark.usefixtures("numpy")
def test_reading_takes_memory_by_the_bytes_and_not_by_what_they_say() -> None:
    data = varints.write([2**35 - 1] * 200)
    tracemalloc.start()
    try:
        varints.read(data)
        assert tracemalloc.get_traced_memory()[1] < 100 * len(data)
    finally:
        tracemalloc.stop()
