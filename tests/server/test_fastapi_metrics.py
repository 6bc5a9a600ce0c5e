"""METRICS=on with an event loop: routes of routers, WebSockets, a blocked loop."""

import json

import httpx2
import pytest
from websockets.sync.client import connect

from tests.support.commands import poll
from tests.support.exporter import Measured

REQUESTS = "http_server_request_duration_seconds_count"
APP = "tests.support.measured_fastapi:app"


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_route_has_the_prefix_of_its_router(workers: str) -> None:
    """Also with HEAD. One that does not allow the method has no name, and pages of FastAPI have none.

    A mounted application's routes have its path, but never a value that a client chose.
    """
    with Measured("serving.uvicorn", APP, WEB_CONCURRENCY=workers).wait() as server:
        for target in ("/outer/inner/1", "/outer/inner/2", "/mounted/1", "/tenants/me/1", "/openapi.json"):
            assert httpx2.get(server.url + target, trust_env=False).status_code == 200
        assert httpx2.head(server.url + "/outer/inner/3", trust_env=False).status_code == 200
        assert httpx2.post(server.url + "/known", trust_env=False).status_code == 405
        figures = poll(lambda: (now := server.scrape()).total(REQUESTS) == 7 and now, log=server.log)
        assert figures.values(REQUESTS, "http_route") == {
            "/outer/inner/{number}",
            "/mounted/{number}",
            "/{number}",
            "_OTHER",
        }
        assert figures.total(REQUESTS, http_route="/outer/inner/{number}") == 3
        assert figures.total(REQUESTS, http_request_method="HEAD") == 1


def test_websockets_and_a_blocked_loop_are_shown() -> None:
    """And nothing of threads."""
    with Measured("serving.uvicorn", APP, WEB_CONCURRENCY="1").wait() as server:
        with connect(server.url.replace("http", "ws") + "/outer/socket", proxy=None) as first:
            poll(lambda: server.scrape().total("server_websockets") == 1, log=server.log)
            first.send(json.dumps("bye"))
        poll(lambda: server.scrape().total("server_websockets") == 0, log=server.log)
        httpx2.get(server.url + "/block", trust_env=False, timeout=10)
        poll(lambda: server.scrape().total("server_event_loop_delay_seconds") > 0.8, log=server.log)
        assert not {name for name in server.scrape().names() if "threads" in name}


@pytest.mark.slow
def test_a_recycled_worker_is_counted() -> None:
    """Its successor goes on in the same place."""
    options = ("--limit-max-requests", "20", "--limit-max-requests-jitter", "0")
    with Measured("serving.uvicorn", *options, APP, WEB_CONCURRENCY="2").wait() as server:
        sent = 0
        while not server.scrape().total("server_worker_exits_total", cause="recycled"):
            poll(lambda: answers(server), log=server.log)
            sent += 1
        poll(lambda: server.scrape().total("server_workers") == 2, 30, log=server.log)
        poll(lambda: server.scrape().total(REQUESTS) == sent, log=server.log)


def answers(server: Measured) -> bool:
    """Whether a request is answered."""
    try:
        return httpx2.get(server.url, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
