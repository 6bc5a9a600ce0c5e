"""The ASGI application's WebSocket and events, in containers and as processes."""

import threading
import time

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.processes import Stack

MEBIBYTE = 1024 * 1024


@pytest.fixture(params=["processes", "containers", "hybrid"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """The service as a local process, in a container, and under Gunicorn in a container."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def url(stack: Stack) -> str:
    """Where the service answers."""
    return stack.urls["fastapi"]


def test_the_websocket_echoes_text_binary_and_a_mebibyte(url: str) -> None:
    """What goes in comes out, in kind and length, up to the limit; fragments come out as one message."""
    with connect(url.replace("http", "ws") + "/ws", max_size=None, compression=None) as socket:
        for message in ("text", b"\x00\xff", "x" * MEBIBYTE, b"x" * MEBIBYTE):
            socket.send(message)
            assert message == socket.recv(timeout=10)
        socket.send([b"a", b"b"])
        assert socket.ping().wait(10)
        assert socket.recv(timeout=10) == b"ab"


def test_a_foreign_page_cannot_open_the_websocket(url: str) -> None:
    """403 for another origin, also for one that only looks like ours; our own page may."""
    address = url.replace("http", "ws") + "/ws"
    for origin in ("https://evil.example", "http://localhost.evil.example", "null", "http://["):
        with pytest.raises(InvalidStatus) as refused, connect(address, origin=origin):
            pass
        assert refused.value.response.status_code == 403
    with connect(address, origin=url) as socket:
        socket.send("hello")
        assert socket.recv(timeout=10) == "hello"


@pytest.mark.parametrize("stack", ["processes"], indirect=True)
def test_events_arrive_while_they_are_produced(url: str, http: httpx2.Client) -> None:
    """The first event is here before the last one is made, and the stream ends."""
    arrivals = []
    with http.stream("GET", url + "/events?count=3&interval=0.5") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data:"):
                arrivals.append((line, time.monotonic()))
    assert [line for line, _ in arrivals] == ["data: 0", "data: 1", "data: 2"]
    assert arrivals[-1][1] - arrivals[0][1] > 0.8
    assert http.get(url + "/events?count=101").status_code == 422


def test_a_stop_closes_websockets_with_1012(stack: Stack) -> None:
    """The code says "service restart", so that a client knows to come back."""
    try:
        with connect(stack.urls["fastapi"].replace("http", "ws") + "/ws") as client:
            client.send("here")
            assert client.recv(timeout=10) == "here"
            stop = threading.Thread(target=stack.stop, args=["fastapi"])
            stop.start()
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=20)
            stop.join(40)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    finally:
        stack.start("fastapi")
