"""Addresses as they are written, and what keeps a coordinator from listening at one."""

from __future__ import annotations

import socket

import pytest

from fedtiny.errors import ExperimentError, RunError
from fedtiny.server.addresses import Obstacle, beside, check_free, obstacle, read_address


def test_an_address_is_a_host_and_a_port() -> None:
    assert read_address("127.0.0.1:8470") == ("127.0.0.1", 8470)
    assert read_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("text", ["", "8470", ":8470", "host", "host:", "host:port", "host:65536"])
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ExperimentError, match="write HOST:PORT"):
        read_address(text)


def test_devices_join_one_port_further_or_at_any_that_is_free() -> None:
    assert beside("[::1]:8470") == "[::1]:8471"
    assert beside("127.0.0.1:0") == "127.0.0.1:0"


def test_an_address_that_is_free_is_tried_and_left_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert [check_free(f"127.0.0.1:{port}") for _ in range(2)] == [("127.0.0.1", port)] * 2


def test_an_address_that_somebody_has_is_told_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RunError, match=f"{at} cannot be had: .*; stop what listens there, or"):
            check_free(at)


def test_an_address_of_another_machine_is_told_as_such() -> None:
    with pytest.raises(RunError, match=r"192\.0\.2\.1:8470 .*no address of this machine"):
        check_free("192.0.2.1:8470")  # one that documents use, and no machine has


def test_a_name_that_is_not_known_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: tuple[str, int]) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "socket", type("Unknown", (socket.socket,), {"bind": bind}))
    unknown = Obstacle("Name or service not known", "choose another address")
    assert obstacle(("fleet.local", 8470)) == unknown
