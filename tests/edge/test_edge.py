"""The edge keeps its promises towards browsers, slow and forging clients, and replicas behind it."""

import asyncio
import json
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aioquic.asyncio.client import connect as quic
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration

from tests.support.browser import Browser, raw
from tests.support.commands import poll, run
from tests.support.containers import Containers
from tests.support.processes import PROGRAMS

MEBIBYTE = 1024 * 1024
PAGES = tuple(PROGRAMS)
# Where any of them will do.
ANY = PAGES[-1]
ONCE = (
    "content-security-policy",
    "cross-origin-opener-policy",
    "referrer-policy",
    "x-content-type-options",
    "x-frame-options",
    "x-request-id",
)


@pytest.fixture(scope="module")
def browser(containers: Containers) -> Iterator[Browser]:
    """A browser of the shared stack."""
    with Browser(containers) as client:
        yield client


@pytest.fixture
def plain() -> Iterator[httpx2.Client]:
    """A client for the plain listeners."""
    with httpx2.Client(trust_env=False) as client:
        yield client


def test_plain_http_is_redirected_to_the_right_port(containers: Containers) -> None:
    """Address and query stay; a name that is not ours leads nowhere."""
    ports = containers.ports
    url = f"http://127.0.0.1:{ports['EDGE_HTTP_PORT']}/a/b?c=d"
    for service in PAGES:
        answer = httpx2.get(url, headers={"host": f"{service}.localhost:{ports['EDGE_HTTP_PORT']}"})
        expected = f"https://{service}.localhost:{ports['EDGE_HTTPS_PORT']}/a/b?c=d"
        assert (308, expected) == (answer.status_code, answer.headers["location"])
    foreign = httpx2.get(url, headers={"host": "evil.example"})
    assert (foreign.status_code, foreign.headers.get("location")) == (421, None)


def test_http_2_is_spoken(browser: Browser, tmp_path: Path) -> None:
    """Curl, with the local authority's certificate and nothing else, gets HTTP/2 from every service."""
    (tmp_path / "root.crt").write_text(browser.root)
    for service in PAGES:
        name = f"{service}.localhost:{browser.port}"
        options = ("--silent", "--http2", "--cacert", tmp_path / "root.crt", "--output", "/dev/null")
        resolve = ("--resolve", f"{name}:127.0.0.1", "--write-out", "%{http_code} %{http_version}")
        assert run("curl", *options, *resolve, f"https://{name}/") == "200 2"


def test_tls_is_mozillas_intermediate_profile(browser: Browser, tmp_path: Path) -> None:
    """Versions, ciphers, curves and certificate, asked one by one."""
    (tmp_path / "root.crt").write_text(browser.root)
    trust = ("--certinfo", "--certinfo_ca_file", tmp_path / "root.crt", "--sni", f"{ANY}.localhost")
    program = (sys.executable, "-m", "sslyze", "--mozilla_config=intermediate", *trust)
    assert "OK - Compliant." in run(*program, f"127.0.0.1:{browser.port}")


def test_http_3_is_spoken_where_it_is_advertised(browser: Browser) -> None:
    """The port in Alt-Svc answers over QUIC."""
    port = re.match(r'h3=":(\d+)"', browser.ask(ANY).headers["alt-svc"])
    assert port
    name = f"{ANY}.localhost:{port[1]}"

    class Client(QuicConnectionProtocol):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.http = H3Connection(self._quic)
            self.answer = asyncio.get_running_loop().create_future()

        def quic_event_received(self, event: Any) -> None:
            for found in self.http.handle_event(event):
                if isinstance(found, HeadersReceived) and not self.answer.done():
                    self.answer.set_result(dict(found.headers))

    async def get() -> dict[bytes, bytes]:
        configuration = QuicConfiguration(alpn_protocols=["h3"], server_name=f"{ANY}.localhost")
        configuration.load_verify_locations(cadata=browser.root.encode())
        address = ("127.0.0.1", int(port[1]))
        async with quic(*address, configuration=configuration, create_protocol=Client) as client:
            request = {":method": "GET", ":scheme": "https", ":authority": name, ":path": "/"}
            headers = [(key.encode(), value.encode()) for key, value in request.items()]
            stream = client._quic.get_next_available_stream_id()
            client.http.send_headers(stream, headers, end_stream=True)
            client.transmit()
            return await client.answer

    assert asyncio.run(asyncio.wait_for(get(), 20))[b":status"] == b"200"


def test_what_is_too_large_is_refused_by_the_edge(containers: Containers) -> None:
    """413 for a body, announced or not, 414 for an address, 431 for headers; no application is asked."""
    for service, url in containers.urls.items():
        name = url.removeprefix("http://")
        head = (
            f"POST /echo HTTP/1.1\r\nHost: {name}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        )
        chunk = f"{2 * MEBIBYTE:x}\r\n{'1' * 2 * MEBIBYTE}\r\n0\r\n\r\n"
        before = containers.log(service)
        for status, request in (
            (b"413", f"{head}Content-Length: {MEBIBYTE + 1}\r\nExpect: 100-continue\r\n\r\n"),
            (b"413", f"{head}Transfer-Encoding: chunked\r\n\r\n{chunk}"),
            (b"414", f"GET /{'a' * 4000} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"),
            (b"431", f"{head}X-Long: {'a' * 13_000}\r\n\r\n"),
        ):
            answer = raw(url, request.encode())
            assert answer.split()[1] == status, service
            assert (b"application/problem+json" in answer) == (status != b"431"), service
        assert containers.log(service) == before


def test_a_slow_body_has_fifteen_seconds(containers: Containers, browser: Browser) -> None:
    """Then the client gets 408 and the application nothing; a body of five seconds arrives, whoever waits."""

    def send(url: str, request: str, pause: float, rest: str = "") -> tuple[bytes, str]:
        """Status and body for a request whose end comes after a pause, or never."""
        host, port = url.partition("://")[2].split(":")
        client = socket.create_connection((host, int(port)), timeout=40)
        if url.startswith("https"):
            host = f"{ANY}.localhost"
            client = browser.context.wrap_socket(client, server_hostname=host)
        with client:
            method, path, framing = request.split(" ", 2)
            head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n{framing}"
            client.sendall(head.encode())
            time.sleep(pause)
            client.sendall(rest.encode())
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
        return answer.split()[1], answer.partition(b"\r\n\r\n")[2].decode()

    sized, chunked = "Content-Length: 2\r\n\r\n1", "Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n"
    urls = containers.urls | {"https": f"https://127.0.0.1:{browser.port}"}
    with ThreadPoolExecutor(64) as pool:
        late, whole = [], []
        for service, url in urls.items():
            for method, framing in (("POST", sized), ("PUT", sized), ("PUT", chunked), ("GET", sized)):
                late.append(pool.submit(send, url, f"{method} /late {framing}", 0))
            for framing, rest in ((sized, "1"), (chunked, "1\r\n1\r\n0\r\n\r\n")):
                whole.append(pool.submit(send, url, f"PUT /whole-{service} {framing}", 5, rest))
        # The deadline is for bodies alone: an answer goes on after it, over HTTP/1.1 too.
        if "fastapi" in urls:
            events = pool.submit(httpx2.get, urls["fastapi"] + "/events?count=3&interval=8", timeout=30)
    problem = '{"title": "Request Timeout", "status": 408}'
    assert {(b"408", problem): len(late)} == Counter(future.result() for future in late)
    assert {future.result()[0] for future in whole} <= {b"403", b"404", b"405"}
    if "fastapi" in urls:
        assert events.result().text.count("data:") == 3
    log = containers.log()
    assert [service for service in urls if log.count(f'"PUT /whole-{service}"') != 2] == []
    assert "/late" not in "".join(containers.log(service) for service in containers.urls)


def test_an_answer_before_the_end_of_a_body_arrives(containers: Containers, plain: httpx2.Client) -> None:
    """An application that refuses a long body unread is heard, every time."""
    content, kind = b"x=" + b"x" * 1_000_000, {"content-type": "application/x-www-form-urlencoded"}
    for service, url in containers.urls.items():
        page = "html" in plain.get(url).headers["content-type"]
        path, expected = ("/", 403) if page else ("/nowhere", 404)
        answers = [plain.post(url + path, content=content, headers=kind).status_code for _ in range(30)]
        assert {expected: 30} == Counter(answers), service


def test_json_of_flask_is_compressed_once(browser: Browser) -> None:
    """A long JSON document by the edge, a short one by nobody."""
    packed = browser.ask("flask", "/echo", "POST", json="x" * 10_000, headers={"accept-encoding": "gzip"})
    assert (packed.headers.get_list("content-encoding"), packed.json()["echo"]) == (["gzip"], "x" * 10_000)
    assert "content-encoding" not in browser.ask("flask").headers


def test_a_static_file_of_django_is_not_compressed_again(browser: Browser) -> None:
    """It comes from the application as it is packed there."""
    style = re.search(r'href="(/static/\S+\.css)"', browser.ask("django").text)
    assert style
    static = browser.ask("django", style[1], headers={"accept-encoding": "br"})
    assert static.headers.get_list("content-encoding") == ["br"]
    assert "max-width" in static.text


def test_security_headers_come_once_and_on_errors_too(browser: Browser) -> None:
    """Each of them, whoever answers; no server's name, and no HSTS, which would bind all of localhost."""
    answers = [
        browser.ask(service, path) for service in PAGES for path in ("/", "/nothing", f"/{'a' * 4000}")
    ]
    answers.append(browser.ask(ANY, headers={"host": "evil.example"}))
    assert [answer.status_code for answer in answers] == [200, 404, 414] * len(PAGES) + [421]
    answers.append(browser.ask("fastapi", "/docs"))
    assert answers[-1].status_code == 200
    for answer in answers:
        assert dict.fromkeys(ONCE, 1) == {name: len(answer.headers.get_list(name)) for name in ONCE}, answer
        assert {"server", "via", "x-powered-by", "strict-transport-security"} & answer.headers.keys() == set()


def test_the_access_log_is_json_with_the_applications_request_id(browser: Browser) -> None:
    """One id in the answer, the edge's line and the application's line; probes leave none."""
    browser.ask(ANY, "/livez")
    identity = browser.ask(ANY, "/?a=b").headers["x-request-id"]

    def lines() -> list[dict]:
        log = browser.stack.compose("logs", "--no-log-prefix", "edge")
        return [entry for entry in map(json.loads, log.splitlines()) if "request" in entry]

    found = poll(lambda: [line for line in lines() if line.get("request_id") == identity])
    assert (found[0]["request"]["uri"], found[0]["status"]) == ("/?a=b", 200)
    assert [line for line in lines() if line["request"]["uri"] in ("/livez", "/readyz")] == []
    assert identity in browser.stack.log(ANY)


def test_a_form_of_django_works_over_tls_and_its_cookies_stay_there(browser: Browser) -> None:
    """CSRF holds, cookies are Secure and no redirect leads out of TLS."""
    page = browser.ask("django")
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token
    for flag in ("Secure", "HttpOnly", "SameSite=Lax"):
        assert flag in page.headers["set-cookie"].split("; ")
    form = {"author": "Ada", "message": "over TLS", "csrfmiddlewaretoken": token[1]}
    cookie = {"cookie": f"csrftoken={page.cookies['csrftoken']}"}
    for origin, status in {
        f"https://django.localhost:{browser.port}": 302,
        "https://evil.example": 403,
    }.items():
        answer = browser.ask("django", "/", "POST", data=form, headers=cookie | {"origin": origin})
        assert status == answer.status_code, answer.text
        assert not answer.headers.get("location", "").startswith("http:")


def test_a_session_of_django_stays_in_tls(browser: Browser) -> None:
    """Whoever enters the admin gets a cookie that no script, no other site and no plain HTTP sees."""
    password = {"DJANGO_SUPERUSER_PASSWORD": "only here"}
    browser.stack.manage_django("createsuperuser --noinput --username ada --email ada@localhost", **password)
    page = browser.ask("django", "/admin/login/")
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
    form = {"username": "ada", "password": "only here", "csrfmiddlewaretoken": token, "next": "/admin/"}
    origin = {"origin": f"https://django.localhost:{browser.port}"}
    headers = origin | {"cookie": f"csrftoken={page.cookies['csrftoken']}"}
    answer = browser.ask("django", "/admin/login/", "POST", data=form, headers=headers)
    assert (answer.status_code, answer.headers.get("location")) == (302, "/admin/"), answer.text
    cookies = [cookie.split("; ") for cookie in answer.headers.get_list("set-cookie")]
    session = next(cookie for cookie in cookies if cookie[0].startswith("sessionid="))
    assert {"Secure", "HttpOnly", "SameSite=Lax"} <= set(session)


def test_our_edge_keeps_every_promise_over_tls(containers: Containers, tmp_path: Path) -> None:
    """HTTP/2, forged headers and the WebSocket included; nothing is spared but what a service has not."""
    root = tmp_path / "root.crt"
    root.write_text(containers.exec("edge", "cat", "/data/caddy/pki/authorities/local/root.crt"))
    missing = {
        "django": {"WebSocket"},
        "flask": {"WebSocket", "static files"},
        "fastapi": {"static files"},
    }
    for service, expected in missing.items():
        url = f"https://{service}.localhost:{containers.ports['EDGE_HTTPS_PORT']}"
        command = (sys.executable, "-m", "checks.smoke", url)
        lines = run(*command, env=os.environ | {"CA": str(root)}).splitlines()
        spared = {
            line.removeprefix("not applicable  ").partition(":")[0] for line in lines if "not app" in line
        }
        assert spared == expected, lines
