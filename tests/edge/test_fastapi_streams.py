"""What streams passes the edge unbuffered, and stays in TLS."""

import asyncio
import time

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from tests.support.browser import Browser


def test_a_websocket_passes(browser: Browser) -> None:
    """Over TLS, for a page of ours; a foreign page's is refused."""
    name = f"fastapi.localhost:{browser.port}"

    async def echo(origin: str) -> str | bytes:
        at = {"host": "127.0.0.1", "port": browser.port, "proxy": None}
        async with connect(f"wss://{name}/ws", ssl=browser.context, origin=origin, **at) as client:
            await client.send("over TLS")
            return await client.recv()

    def echo_within_10s(origin: str) -> str | bytes:
        return asyncio.run(asyncio.wait_for(echo(origin), 10))

    assert echo_within_10s(f"https://{name}") == "over TLS"
    with pytest.raises(InvalidStatus) as refused:
        echo_within_10s("https://fastapi.localhost.evil.example")
    assert refused.value.response.status_code == 403


def test_a_message_that_is_too_long_closes_the_websocket(browser: Browser) -> None:
    """A message of 1 MiB comes back. A byte more: code 1009, or none if the client was still sending."""
    name = f"fastapi.localhost:{browser.port}"
    at = {"host": "127.0.0.1", "port": browser.port, "proxy": None, "max_size": None}

    async def echo(size: int) -> int:
        async with connect(f"wss://{name}/ws", ssl=browser.context, **at) as client:
            await client.send(b"x" * size)
            return len(await asyncio.wait_for(client.recv(), 10))

    assert asyncio.run(echo(2**20)) == 2**20
    for _ in range(5):
        with pytest.raises(ConnectionClosedError) as closed:
            asyncio.run(echo(2**20 + 1))
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


def test_events_are_neither_buffered_nor_cut_off(browser: Browser) -> None:
    """Over TLS, to a client that takes compression, for longer than any timeout of the edge."""
    arrivals = []
    name = f"fastapi.localhost:{browser.port}"
    options = {"headers": {"host": name}, "extensions": {"sni_hostname": "fastapi.localhost"}}
    url = f"https://127.0.0.1:{browser.port}/events?count=4&interval=8"
    with browser.stream("GET", url, timeout=20, **options) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                arrivals.append(time.monotonic())
    assert len(arrivals) == 4
    assert arrivals[0] + 7 < arrivals[1] < arrivals[3] - 15


def test_a_redirect_stays_in_tls(browser: Browser) -> None:
    """The application knows the scheme and the port that the client used."""
    slash = browser.ask("fastapi", "/echo/").headers["location"]
    assert f"https://fastapi.localhost:{browser.port}/echo" == slash
