"""The proxy of the fault tests does what it says, to a server that says everything back."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.harness.fault_proxy import FaultProxy, Partition, Strike, Weather


class Echo(socketserver.BaseRequestHandler):
    """Says everything back, and keeps what it heard."""

    heard = bytearray()

    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.heard.extend(data)
                self.request.sendall(data)
        except OSError:
            pass


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    Echo.heard.clear()
    with Server(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with FaultProxy(server.server_address[1], seed=5) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.listens_on), timeout=5)


def echoed(client: socket.socket, data: bytes) -> bytes:
    """What comes back of the data, and how often the proxy corrupts does not change its length."""
    client.sendall(data)
    back = b""
    while len(back) < len(data):
        back += client.recv(65536)
    return back


def test_in_fair_weather_every_byte_passes(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 4000
    with connect(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        back = b""
        while len(back) < len(data):
            back += client.recv(65536)
        sender.join()
        assert back == data
        assert proxy.connections == 1
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert proxy.carried_bytes == 2 * len(data)


def test_a_delay_is_met_once_in_each_direction(proxy: FaultProxy) -> None:
    proxy.meet(Weather(delay_s=0.1, jitter_s=0.02))
    with connect(proxy) as client:
        start = time.monotonic()
        assert echoed(client, b"there and back") == b"there and back"
        assert 0.2 <= time.monotonic() - start < 0.6


def test_a_throttled_connection_carries_so_many_bytes_a_second(proxy: FaultProxy) -> None:
    proxy.meet(Weather(bytes_per_s=40_000))
    with connect(proxy) as client:
        start = time.monotonic()
        echoed(client, bytes(10_000))
        assert 0.2 <= time.monotonic() - start < 1.0


def test_a_reset_strikes_one_connection_once(proxy: FaultProxy) -> None:
    proxy.meet(Strike("reset", after_bytes=1000))
    with connect(proxy) as client:
        assert echoed(client, bytes(999)) == bytes(999)
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.waiting == 0
    assert len(Echo.heard) == 999
    with connect(proxy) as client:
        assert echoed(client, bytes(2000)) == bytes(2000)


def test_of_a_lost_answer_the_request_has_arrived(proxy: FaultProxy) -> None:
    proxy.meet(Strike("lost answer", after_bytes=5))
    with connect(proxy) as client:
        client.sendall(b"hello")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert bytes(Echo.heard) == b"hello"


def test_a_half_open_connection_is_silent_and_stays(proxy: FaultProxy) -> None:
    proxy.meet(Strike("half-open"))
    with connect(proxy) as client:
        client.settimeout(0.3)
        client.sendall(b"hello")
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert proxy.connections == 1
    assert not Echo.heard


def test_what_was_sent_into_a_partition_arrives_after_it(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        echoed(client, b"before")
        proxy.meet(Partition(0.3))
        start = time.monotonic()
        assert echoed(client, b"during") == b"during"
        assert 0.25 <= time.monotonic() - start < 1.0


def test_a_script_is_played_in_order(proxy: FaultProxy) -> None:
    proxy.play([(0.0, Weather(delay_s=0.2)), (0.05, Strike("reset"))])
    with connect(proxy) as client:
        time.sleep(0.2)
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_corruption_is_drawn_from_the_seed(proxy: FaultProxy) -> None:
    proxy.meet(Weather(corrupt_every_bytes=1000))
    with connect(proxy) as client:
        back = echoed(client, bytes(50_000))
    flipped = sum(byte.bit_count() for byte in back)
    assert 50 <= flipped <= 160  # 50 on the way there, 50 on the way back, a few times sqrt(100)


def test_a_client_that_goes_away_is_forgotten(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        echoed(client, b"x")
    deadline = time.monotonic() + 2
    while proxy.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proxy.connections == 0


def test_a_target_that_is_gone_ends_the_connection(proxy: FaultProxy) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy.target_port = unused.getsockname()[1]
        with connect(proxy) as client:
            assert client.recv(1) == b""
