import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import ExperimentError
from fedtiny.wire.joining import JoinString

PIN = "0123456789abcdef" * 4
TOKEN = "D5WCVpAVZKQ2b5Cm41GCJA"
TEXT = f"fedtiny://192.168.1.10:8471/{TOKEN}?pin={PIN}&until=1795251084"

HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z][a-z0-9-]{0,20}){0,3}", fullmatch=True),
)


def test_a_join_string_reads_as_an_address_with_a_pin() -> None:
    joined = JoinString("192.168.1.10", 8471, PIN, TOKEN, 1795251084)
    assert str(joined) == TEXT
    assert JoinString.parse(TEXT) == joined


@given(
    HOSTS,
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
    st.from_regex(r"[A-Za-z0-9_-]{22}", fullmatch=True),
    st.integers(0, 2**40),
)
def test_what_is_written_is_read(host: str, port: int, pin: bytes, token: str, until: int) -> None:
    joined = JoinString(host, port, pin.hex(), token, until)
    assert JoinString.parse(str(joined)) == joined


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_without_certificates_this_machine_can_be_joined(host: str) -> None:
    joined = JoinString(host, 8471, "", TOKEN, 5, insecure=True)
    assert JoinString.parse(str(joined)) == joined


def test_a_string_that_a_terminal_broke_over_lines_is_read() -> None:
    assert JoinString.parse(f" {TEXT[:50]}\n  {TEXT[50:]}\n") == JoinString.parse(TEXT)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is no join string"),
        ("https://host:1/x", "is no join string"),
        ("fedtiny://host:99999/x", "Port out of range"),
        ("fedtiny://[host:1/x", "is no join string"),
        (TEXT.replace(":8471", ""), "names no port"),
        (TEXT.replace("192.168.1.10", ""), "names no host"),
        (TEXT.replace(TOKEN, "short"), "token is not 16 to 64"),
        (TEXT.replace(PIN, PIN[:-1]), "lacks pin=HEX of 64"),
        (TEXT.replace(PIN, PIN.upper()), "lacks pin=HEX of 64"),
        (TEXT.replace("until", "til"), "lacks until"),
        (TEXT.replace("until=1", "until=-1"), "lacks until"),
        (TEXT.replace(f"pin={PIN}", "insecure=1"), "only this machine"),
        (TEXT[: TEXT.index("&")], "lacks until"),
    ],
)
def test_a_wrong_string_is_refused_with_its_fault_and_the_remedy(text: str, fault: str) -> None:
    with pytest.raises(ExperimentError, match=rf"(?s){fault}.*fedtiny token create"):
        JoinString.parse(text)


@given(st.text(max_size=120) | st.text(max_size=100).map(lambda text: "fedtiny://" + text))
def test_any_text_is_a_join_string_or_refused(text: str) -> None:
    try:
        joined = JoinString.parse(text)
    except ExperimentError:
        return
    assert JoinString.parse(str(joined)) == joined
