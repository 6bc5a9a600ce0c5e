"""The edge keeps its promises towards browsers, slow and forging clients, and replicas behind it."""

import json
import os
import socket
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.support.browser import Browser, raw
from tests.support.commands import poll, run
from tests.support.containers import Containers
from tests.support.processes import JSON, PROGRAMS

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


def test_http_3_is_not_offered(browser: Browser) -> None:
    """WebSockets do not work over it (docs/limits.md), so no response advertises it."""
    assert "alt-svc" not in browser.ask(ANY).headers


@pytest.mark.parametrize("service", PAGES)
def test_an_oversized_request_is_refused(containers: Containers, service: str) -> None:
    """413 for a body, announced or in chunks, and 431 for headers."""
    url = containers.urls[service]
    head = (
        f"POST {'/echo' if service in JSON else '/'} HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
    )
    body = "1" * 2 * MEBIBYTE
    answer = raw(url, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    # An application that does not read the body may answer first: without a token the form is refused.
    refused = (b"413",) if service in JSON else (b"413", b"403")
    assert answer.split()[1] in refused
    chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\n"
    assert raw(url, chunked.encode()).split()[1] in refused
    assert raw(url, f"{head}X-Long: {'a' * 13_000}\r\n\r\n".encode()).split()[1] == b"431"


@pytest.mark.parametrize("service", PAGES)
def test_a_slow_body_reaches_the_application_when_it_is_complete(
    containers: Containers, service: str
) -> None:
    """Until then it occupies no worker; afterwards it is an ordinary request."""
    host, port = containers.urls[service].removeprefix("http://").split(":")
    head = f"PUT /slow HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    for framing, rest in (
        ("Content-Length: 2\r\n\r\n1", "1"),
        ("Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n", "0\r\n\r\n"),
    ):
        before = containers.log(service).count('"PUT /slow"')
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall((head + framing).encode())
            time.sleep(2)
            assert containers.log(service).count('"PUT /slow"') == before
            client.sendall(rest.encode())
            assert client.recv(65536).split()[1] in (b"403", b"404", b"405")
        poll(lambda count=before: containers.log(service).count('"PUT /slow"') == count + 1)


@pytest.mark.parametrize("service", PAGES)
def test_bodies_without_an_end_occupy_no_worker(containers: Containers, service: str) -> None:
    """More of them than a service has threads: as long as a body may be, but the last chunk is missing."""
    host, port = containers.urls[service].removeprefix("http://").split(":")
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
    request = f"{head}{MEBIBYTE:x}\r\n{'1' * MEBIBYTE}\r\n".encode()
    with ExitStack() as clients:
        for _ in range(16):
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(request)
        time.sleep(3)
        assert httpx2.get(containers.urls[service], trust_env=False, timeout=10).status_code == 200


def test_the_edge_answers_for_itself(containers: Containers) -> None:
    """A load balancer asks by address, without a Host header and over HTTP/1.0, too."""
    url = f"http://127.0.0.1:{containers.ports['EDGE_HTTP_PORT']}"
    assert raw(url, b"GET /livez HTTP/1.0\r\n\r\n").split()[1] == b"200"
    assert httpx2.get(url + "/livez", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("GET / HTTP/1.1\r\n", b"400"),
        ("GET / HTTP/2.0\r\nHost: localhost\r\n", b"505"),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nExpect: nothing\r\n", b"417"),
        ("POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n", b"501"),
    ],
)
def test_go_answers_a_malformed_request(containers: Containers, lines: str, status: bytes) -> None:
    """In its own words: plain text, without our headers and without a line in the log (docs/limits.md)."""
    head, _, body = raw(containers.urls[ANY], f"{lines}\r\n".encode()).partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert b"Connection: close" in head
    assert b"x-request-id" not in head.lower()
    assert len(body) < 100


@pytest.mark.parametrize(
    ("host", "options", "expected"),
    [
        (f"{ANY}.localhost", "--http1.0 --no-alpn", "200 1"),
        # ALPN offers http/1.0 alone, which Go does not speak over TLS.
        (f"{ANY}.localhost", "--http1.0", "000 0"),
        # Clients send no name for an address.
        ("127.0.0.1", "", "000 0"),
    ],
)
def test_tls_needs_a_name_and_http_1_1(browser: Browser, host: str, options: str, expected: str) -> None:
    """Otherwise the handshake fails without a response (docs/limits.md)."""
    resolve = ("--resolve", f"{host}:{browser.port}:127.0.0.1", "--output", "/dev/null")
    command = ("curl", "--silent", "--insecure", *options.split(), *resolve)
    url = f"https://{host}:{browser.port}/"
    code = 0 if expected.startswith("200") else 35
    assert run(*command, "--write-out", "%{http_code} %{http_version}", url, expect=code) == expected


@pytest.mark.parametrize("service", PAGES)
def test_readiness_is_not_public(browser: Browser, plain: httpx2.Client, service: str) -> None:
    """Each answer may ask a dependency; liveness is public."""
    assert browser.ask(service, "/readyz").status_code == 404
    assert plain.get(browser.stack.urls[service] + "/readyz").status_code == 404
    assert browser.ask(service, "/livez").status_code == 200


@pytest.mark.parametrize("service", PAGES)
def test_metrics_are_not_public(browser: Browser, plain: httpx2.Client, service: str) -> None:
    """They are on a port of their own, which the edge does not forward to."""
    assert browser.ask(service, "/metrics").status_code == 404
    assert plain.get(browser.stack.urls[service] + "/metrics").status_code == 404


@pytest.mark.parametrize("service", PAGES)
def test_a_page_may_load_its_own_stylesheet(browser: Browser, service: str) -> None:
    """The default policy of each service allows what comes from its own origin, and no framing."""
    policy = browser.ask(service).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    error = browser.ask(service, headers={"host": "evil.example"})
    assert "default-src 'none'" in error.headers["content-security-policy"]


# FastAPI
@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect", "/redoc"])
def test_the_documentation_of_fastapi_may_run_its_script(browser: Browser, path: str) -> None:
    """These pages have inline scripts, the OAuth redirect, too."""
    answer = browser.ask("fastapi", path)
    assert answer.status_code == 200
    assert "'unsafe-inline'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("service", PAGES)
def test_a_second_content_type_is_the_client_s_fault(containers: Containers, service: str) -> None:
    """A 4xx answer without delay; not a 502 after several attempts."""
    url = containers.urls[service]
    twice = 'Content-Type: a/b; c="d"\r\n' * 2
    head = f"POST /echo HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\nConnection: close\r\n"
    start = time.monotonic()
    answer = raw(url, f"{head}{twice}Content-Length: 2\r\n\r\n11".encode())
    assert answer.split()[1] in (b"400", b"422")
    assert time.monotonic() - start < 2


def test_an_answer_before_the_end_of_a_body_arrives(containers: Containers, plain: httpx2.Client) -> None:
    """An application that refuses a long body unread is heard, every time."""
    content, kind = b"x=" + b"x" * 1_000_000, {"content-type": "application/x-www-form-urlencoded"}
    for service, url in containers.urls.items():
        page = "html" in plain.get(url).headers["content-type"]
        path, expected = ("/", 403) if page else ("/nowhere", 404)
        answers = [plain.post(url + path, content=content, headers=kind).status_code for _ in range(30)]
        assert {expected: 30} == Counter(answers), service


def test_json_of_flask_is_compressed_once(browser: Browser) -> None:
    """The edge compresses a long JSON document, and leaves a short one as it is."""
    packed = browser.ask("flask", "/echo", "POST", json="x" * 10_000, headers={"accept-encoding": "gzip"})
    assert (packed.headers.get_list("content-encoding"), packed.json()["echo"]) == (["gzip"], "x" * 10_000)
    assert "content-encoding" not in browser.ask("flask").headers


def test_security_headers_come_once_and_on_errors_too(browser: Browser) -> None:
    """From every service; without a server's name, and without HSTS, which would bind all of localhost."""
    answers = [browser.ask(service, path) for service in PAGES for path in ("/", "/nothing", "/readyz")]
    answers.append(browser.ask(ANY, headers={"host": "evil.example"}))
    assert [answer.status_code for answer in answers] == [200, 404, 404] * len(PAGES) + [421]
    for answer in answers:
        assert dict.fromkeys(ONCE, 1) == {name: len(answer.headers.get_list(name)) for name in ONCE}, answer
        assert {"server", "via", "x-powered-by", "strict-transport-security"} & answer.headers.keys() == set()


def test_the_access_log_is_json_with_the_applications_request_id(browser: Browser) -> None:
    """One id in the answer, the edge's line and the application's line; liveness probes leave none."""
    browser.ask(ANY, "/livez")
    identity = browser.ask(ANY, "/?a=b").headers["x-request-id"]

    def lines() -> list[dict]:
        log = browser.stack.compose("logs", "--no-log-prefix", "edge")
        return [entry for entry in map(json.loads, log.splitlines()) if "path" in entry]

    found = poll(lambda: [line for line in lines() if line.get("request_id") == identity])
    assert (found[0]["path"], found[0]["status"]) == ("/", 200)
    assert [line for line in lines() if line["path"] == "/livez"] == []
    poll(lambda: identity in browser.stack.log(ANY))


def test_a_request_is_encoded_for_one_log(containers: Containers) -> None:
    """Caddy encodes it for each log that is defined, and again for a reverse proxy that may write to it."""
    adapted = json.loads(containers.exec("edge", "caddy", "adapt", "--config", "/etc/caddy/Caddyfile"))
    assert adapted["logging"]["logs"].keys() == {"default"}
    assert adapted["logging"]["logs"]["default"]["exclude"] == [
        "http.handlers.reverse_proxy",
        "http.log.error",
    ]


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
        assert spared - {"sessions in memory"} == expected, lines
