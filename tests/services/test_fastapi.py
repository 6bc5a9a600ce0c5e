"""The ASGI application's WebSocket and events, in containers and as processes."""

import threading
import time
from contextlib import suppress

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from tests.support.processes import Stack

MEBIBYTE = 1024 * 1024


def asgi(stack: Stack) -> list[str]:
    """The addresses of every service that runs the ASGI application."""
    return [url for service, url in stack.urls.items() if service.startswith("fastapi")]


def test_the_websocket_echoes_text_binary_and_a_mebibyte(stack: Stack) -> None:
    """What goes in comes out, in kind and length, up to the limit."""
    for url in asgi(stack):
        with connect(url.replace("http", "ws") + "/ws", max_size=None, compression=None) as socket:
            for message in ("text", b"\x00\xff", "x" * MEBIBYTE, b"x" * MEBIBYTE):
                socket.send(message)
                assert message == socket.recv(timeout=10)


def test_the_websocket_closes_a_message_over_the_limit_with_1009(stack: Stack) -> None:
    """One byte more than uvicorn.json allows is too big."""
    for url in asgi(stack):
        with connect(url.replace("http", "ws") + "/ws", max_size=None, compression=None) as socket:
            # In two frames: a server that closes with much unread resets the connection, and a proxy
            # may then lose the close frame.
            with suppress(ConnectionClosedError):
                socket.send([b"x" * MEBIBYTE, b"x"])
            with pytest.raises(ConnectionClosedError) as closed:
                socket.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_a_foreign_page_can_not_open_the_websocket(stack: Stack) -> None:
    """403 for another origin, also for one that only looks like ours; our own page may."""
    for url in asgi(stack):
        address = url.replace("http", "ws") + "/ws"
        for origin in ("https://evil.example", "http://localhost.evil.example", "null", "http://["):
            with pytest.raises(InvalidStatus) as refused, connect(address, origin=origin):
                pass
            assert refused.value.response.status_code == 403
        with connect(address, origin=url) as socket:
            socket.send("hello")
            assert socket.recv(timeout=10) == "hello"


def test_events_arrive_while_they_are_produced(stack: Stack, http: httpx2.Client) -> None:
    """The first event is here before the last one is made, and the stream ends."""
    for url in asgi(stack):
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
    for service in [name for name in stack.urls if name.startswith("fastapi")]:
        try:
            with connect(stack.urls[service].replace("http", "ws") + "/ws") as client:
                client.send("here")
                assert client.recv(timeout=10) == "here"
                stop = threading.Thread(target=stack.stop, args=[service])
                stop.start()
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=20)
                stop.join(40)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012, service
        finally:
            stack.start(service)
