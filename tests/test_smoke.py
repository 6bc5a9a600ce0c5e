"""Every service keeps its contract, in containers and as processes, by the same code."""

import gzip
import re
import time
from collections.abc import Iterator
from contextlib import suppress

import brotli
import httpx2
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from tests import smoke
from tests.conftest import Containers, Processes, Server, poll
from tests.site import Site

Stack = Containers | Processes
MEBIBYTE = 1024 * 1024


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """A client that keeps cookies and follows no redirect."""
    with httpx2.Client(trust_env=False) as client:
        yield client


def asgi(stack: Stack) -> list[str]:
    """The addresses of every service that runs the ASGI application."""
    return [url for service, url in stack.urls.items() if service.startswith("fastapi")]


def sign(http: httpx2.Client, url: str, author: str, message: str) -> httpx2.Response:
    """Post an entry to the guestbook with the page's own CSRF token."""
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', http.get(url).text)
    assert token
    form = {"author": author, "message": message, "csrfmiddlewaretoken": token[1]}
    return http.post(url, data=form)


def test_every_service_answers_its_page_and_its_probes(stack: Stack, http: httpx2.Client) -> None:
    """The page answers 200 with an id of our making; the probes say ok."""
    assert len(stack.urls) >= 1
    for service, url in stack.urls.items():
        page = http.get(url + "/")
        assert page.status_code == 200, stack.log(service)
        assert re.fullmatch(r"[0-9a-f]{32}", page.headers["x-request-id"])
        for path in ("/livez", "/readyz"):
            probe = http.get(url + path)
            assert (probe.status_code, probe.json()) == (200, {"status": "ok", "failed": {}}), service


def test_probes_stay_out_of_the_access_log_and_requests_carry_their_id(
    stack: Stack, http: httpx2.Client
) -> None:
    """A request's log line holds the id that the response names; a probe leaves no line."""
    for service, url in stack.urls.items():
        http.get(url + "/livez")
        identity = http.get(url + "/").headers["x-request-id"]
        deadline = time.monotonic() + 10
        while identity not in (log := stack.log(service)):
            assert time.monotonic() < deadline, log
        assert not re.search(r"(GET|HEAD) /(livez|readyz)", log), service


def test_every_service_keeps_what_any_deployment_owes(stack: Stack) -> None:
    """Nothing of `make smoke` is broken, nothing that a service has is passed over; errors are tiny."""
    for service, url in stack.urls.items():
        report = smoke.examine(Site(url, largest=1000))
        broken = {name: found for name, (result, found) in report.items() if result == "broken"}
        assert broken == {}, service
        kept = {name for name, (result, _) in report.items() if result == "kept"}
        needed = {"django": {"static files", "security headers"}, "flask": set()}.get(service, {"WebSocket"})
        needed |= {"forged headers"} if stack.runtime == "docker" else set()
        assert needed <= kept, (service, report)


def test_every_refusal_is_a_problem_document(stack: Stack, http: httpx2.Client) -> None:
    """RFC 9457 for each status that a client can provoke."""
    json = {"content-type": "application/json"}
    long = b'"' + b"x" * MEBIBYTE + b'"'
    for url in (stack.urls["flask"], *asgi(stack)):
        wrong_type = 415 if url == stack.urls["flask"] else 422
        expected = {
            # On a connection of its own: a body that was not read ends its connection.
            413: httpx2.post(url + "/echo", content=long, headers=json),
            404: http.get(url + "/nothing"),
            405: http.put(url + "/echo"),
            400: http.post(url + "/echo", content=b"{", headers=json),
            wrong_type: http.post(url + "/echo", content=b"[]", headers={"content-type": "text/plain"}),
        }
        for status, answer in expected.items():
            assert (status, status) == (answer.status_code, answer.json()["status"])
            assert answer.headers["content-type"] == "application/problem+json"
            assert len(answer.content) < 1000
        assert "POST" in expected[405].headers["allow"]


def test_echo_returns_the_document(stack: Stack, http: httpx2.Client) -> None:
    """Any JSON value comes back as it was, up to the limit."""
    for url in (stack.urls["flask"], *asgi(stack)):
        for value in ({"a": [1, None, "ü"]}, "text", [], "x" * (MEBIBYTE - 2)):
            assert {"echo": value} == http.post(url + "/echo", json=value).json()


@pytest.mark.parametrize("app", ["flask", "fastapi"])
def test_an_unforeseen_error_is_answered_without_a_trace_and_logged_with_it(app: str, tmp_path) -> None:
    """500 as a problem document; the traceback stands in the log, with the request's id."""
    package = {"flask": "wsgi_app.flask_site", "fastapi": "asgi_app.main"}[app]
    inner = {"flask": "app", "fastapi": "api"}[app]
    (tmp_path / "broken.py").write_text(
        f"import {package} as site\n"
        f"@site.{inner}.get('/broken')\n"
        "def broken():\n    raise RuntimeError('secret detail')\n"
        f"app = site.{'application' if app == 'flask' else 'app'}\n"
    )
    command = {"flask": ("serving.gunicorn", "broken:app"), "fastapi": ("asgi_app", "broken:app")}[app]
    with Server(*command, PYTHONPATH=str(tmp_path)).wait() as server:
        answer = httpx2.get(server.url + "/broken")
        assert (answer.status_code, answer.json()["status"]) == (500, 500)
        assert "secret detail" not in answer.text
        # Logged after the answer was sent.
        poll(lambda: "RuntimeError: secret detail" in server.log(), log=server.log)
        assert re.search(rf"ERROR \[\d+\] \[{answer.headers['x-request-id']}\]", server.log()), server.log()


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


def test_static_files_are_hashed_compressed_and_immutable(stack: Stack, http: httpx2.Client) -> None:
    """The page names hashed files; each comes plain, as gzip and as brotli, to be kept for ever."""
    url = stack.urls["django"]
    page = http.get(url + "/").text
    path = re.search(r'href="(/static/guestbook\.[0-9a-f]{12}\.css)"', page)
    assert path, page
    plain = http.get(url + path[1], headers={"accept-encoding": "identity"})
    assert b"max-width" in plain.content
    assert re.fullmatch(r"max-age=\d{8,}, public, immutable", plain.headers["cache-control"])
    for encoding, unpack in (("gzip", gzip.decompress), ("br", brotli.decompress)):
        with http.stream("GET", url + path[1], headers={"accept-encoding": encoding}) as packed:
            assert packed.headers["content-encoding"] == encoding
            assert unpack(b"".join(packed.iter_raw())) == plain.content
    image = re.search(r'src="(/static/guestbook\.[0-9a-f]{12}\.svg)"', page)
    assert image
    assert http.get(url + image[1]).headers["content-type"] == "image/svg+xml"


def test_the_guestbook_shows_newest_first_on_pages_of_ten(stack: Stack, http: httpx2.Client) -> None:
    """Twelve entries make two pages; markup in them is text."""
    url = stack.urls["django"] + "/"
    for number in range(12):
        assert sign(http, url, "Ada", f"<b>entry {number}</b>").status_code == 302
    first, second = http.get(url).text, http.get(url + "?page=2").text
    assert [f"&lt;b&gt;entry {n}&lt;/b&gt;" for n in range(11, 1, -1)] == re.findall(r"&lt;b.*?/b&gt;", first)
    assert "&lt;b&gt;entry 1&lt;/b&gt;" in second
    assert "<b>entry" not in first + second


def test_the_guestbook_refuses_a_forged_form_and_a_blank_one(stack: Stack, http: httpx2.Client) -> None:
    """403 without a token, 422 with nothing in it; neither is kept."""
    url = stack.urls["django"] + "/"
    forged = http.post(url, data={"author": "Eve", "message": "forged entry"})
    assert forged.status_code == 403
    assert "Traceback" not in forged.text
    assert sign(http, url, "", "anonymous entry").status_code == 422
    assert "forged entry" not in http.get(url).text
    assert "anonymous entry" not in http.get(url).text


def test_a_guestbook_entry_survives_a_restart(stack: Stack, http: httpx2.Client) -> None:
    """What was signed is still there after the service stopped and started."""
    url = stack.urls["django"] + "/"
    assert sign(http, url, "Grace", "I was here before").status_code == 302
    assert stack.stop("django") == 0
    stack.start("django")
    assert "I was here before" in http.get(url).text


def test_the_admin_lets_a_new_superuser_in(stack: Stack, http: httpx2.Client) -> None:
    """Createsuperuser works in both runtimes, and the guestbook is in the admin."""
    url = stack.urls["django"]
    arguments = "createsuperuser --noinput --username root --email root@example.org"
    stack.manage(arguments, DJANGO_SUPERUSER_PASSWORD="correct horse battery")
    login = f"{url}/admin/login/"
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', http.get(login).text)
    assert token
    form = {"username": "root", "password": "correct horse battery", "csrfmiddlewaretoken": token[1]}
    answer = http.post(login, data=form)
    assert answer.status_code == 302, answer.text
    listing = http.get(f"{url}/admin/guestbook/entry/")
    assert listing.status_code == 200
    assert "Select entry to change" in listing.text
