"""Slow and hostile clients are closed, cost the others nothing, and get no further than the edge."""

import itertools
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, lacking, poll, run
from tests.support.containers import Containers, up_until_teardown
from tests.support.servers import Server

pytestmark = pytest.mark.alone

CONNECTIONS = 200
HOST = "Host: localhost\r\n"
CHUNKED = f"POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = f"GET /smuggled HTTP/1.1\r\n{HOST}\r\n"
MALFORMED = {
    "two hosts": f"GET / HTTP/1.1\r\n{HOST}Host: other\r\n\r\n",
    "the same host twice": f"GET / HTTP/1.1\r\n{HOST}{HOST}\r\n",
    "no host": "GET / HTTP/1.1\r\n\r\n",
    "a path in the host": "GET / HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
    "chunks and a length": f"{CHUNKED[:-2]}Content-Length: 4\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunks and a long length": f"{CHUNKED[:-2]}Content-Length: 99\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunks, then identity": f"{CHUNKED[:-2]}Transfer-Encoding: identity\r\n\r\n0\r\n\r\n{SMUGGLED}",
    "chunks in HTTP/1.0": f"{CHUNKED.replace('/1.1', '/1.0')}0\r\n\r\n{SMUGGLED}",
    "chunks misspelt": f"{CHUNKED.replace('chunked', 'xchunked')}0\r\n\r\n{SMUGGLED}",
    "chunks behind a control": f"{CHUNKED.replace('chunked', '\vchunked')}0\r\n\r\n{SMUGGLED}",
    "a blank before the colon": f"{CHUNKED.replace(':', ' :')}0\r\n\r\n{SMUGGLED}",
    "a negative chunk": f"{CHUNKED}-1\r\na\r\n0\r\n\r\n{SMUGGLED}",
    "a chunk in C's notation": f"{CHUNKED}0x1\r\na\r\n0\r\n\r\n{SMUGGLED}",
    "a chunk beyond 64 bits": f"{CHUNKED}{'f' * 17}\r\na\r\n0\r\n\r\n{SMUGGLED}",
    "a chunk longer than it says": f"{CHUNKED}1\r\nabc\r\n0\r\n\r\n{SMUGGLED}",
    "a line feed in a chunk's extension": f"{CHUNKED}1;\nxx\r\na\r\n0\r\n\r\n{SMUGGLED}",
    "a malformed trailer": f"{CHUNKED}0\r\nno colon\r\n\r\n{SMUGGLED}",
    "two lengths": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a list of lengths": f"POST / HTTP/1.1\r\n{HOST}Content-Length: 4, 4\r\n\r\nabcd",
    "a length with a sign": f"POST / HTTP/1.1\r\n{HOST}Content-Length: +4\r\n\r\nabcd",
    "a negative length": f"POST / HTTP/1.1\r\n{HOST}Content-Length: -4\r\n\r\nabcd",
    "a body that looks like a request": f"PUT / HTTP/1.1\r\n{HOST}Content-Length: 49\r\n\r\n{SMUGGLED}",
    "bare line feeds": "GET / HTTP/1.1\nHost: localhost\n\n",
    "a bare carriage return": "GET / HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    "NUL in a header": f"GET / HTTP/1.1\r\n{HOST}X: a\0b\r\n\r\n",
    "NUL in the address": f"GET /\0 HTTP/1.1\r\n{HOST}\r\n",
    "a folded header": f"GET / HTTP/1.1\r\n{HOST}X: a\r\n b\r\n\r\n",
    "a folded first header": f"GET / HTTP/1.1\r\n X: a\r\n{HOST}\r\n",
    "a blank in a name": f"GET / HTTP/1.1\r\n{HOST}X y: a\r\n\r\n",
    "no colon": f"GET / HTTP/1.1\r\n{HOST}nonsense\r\n\r\n",
    "two types": f"GET / HTTP/1.1\r\n{HOST}Content-Type: text/plain\r\nContent-Type: text/html\r\n\r\n",
    "a huge line": f"GET /{'a' * 20_000} HTTP/1.1\r\n{HOST}\r\n",
    "a thousand headers": f"GET / HTTP/1.1\r\n{HOST}{'X-Header: y\r\n' * 1000}\r\n",
    "HTTP/2 in a line": f"GET / HTTP/2.0\r\n{HOST}\r\n",
    "HTTP/0.9": "GET /\r\n",
    "HTTP/9.9": f"GET / HTTP/9.9\r\n{HOST}\r\n",
    "a control character in a method": f"G\x01T / HTTP/1.1\r\n{HOST}\r\n",
    "no slash": f"GET index HTTP/1.1\r\n{HOST}\r\n",
    "a broken escape": f"GET /%zz HTTP/1.1\r\n{HOST}\r\n",
    "TLS": "\x16\x03\x01\x02\0\x01\0",
}
# What succeeds all the same: the edge makes one well-formed line of each.
MENDED = {
    "bare line feeds",
    "rfc9112_bare_lf_01",
    "a folded header",
    "obs_fold_01",
    "017",  # a header of 8 KiB is too long for Gunicorn by default, not for ours
    "041",  # Uvicorn uses the first of two Content-Type headers
    "two types",
}
# Of 5xx these alone, and they are the client's failure by name: "not implemented", "version not supported".
UNKNOWN = {b"501", b"505"}


@pytest.fixture(scope="module")
def impatient(engine: None) -> Iterator[Containers]:
    """Every service, behind an edge that gives a request 10 s instead of a day."""
    yield from up_until_teardown(Containers(EDGE_TRANSFER_TIMEOUT="10s"))


def p99(client: httpx2.Client, stack: Containers, rounds: int = 100) -> dict[str, float]:
    """The 99th percentile of each service's answers, asked in turn; all of them 200."""
    times: dict[str, list[float]] = {service: [] for service in stack.urls}
    for _ in range(rounds):
        for service, url in stack.urls.items():
            start = time.monotonic()
            assert client.get(url).status_code == 200, service
            times[service].append(time.monotonic() - start)
    return {service: sorted(found)[rounds * 99 // 100 - 1] for service, found in times.items()}


def connected(stack: Containers) -> int:
    """How many clients the edge has a connection with on the services' plain listeners."""
    table = stack.exec("edge", "cat", "/proc/net/tcp", "/proc/net/tcp6")
    lines = [line.split()[1:4] for line in table.splitlines() if ":" in line.split()[0]]
    listeners = {f"{port:04X}" for port in range(8001, 8005)}
    return sum(local.split(":")[1] in listeners and state == "01" for local, _, state in lines)


@pytest.mark.parametrize(("kind", "seconds"), [("-H", 8), ("-B", 18), ("-X", 13)])
def test_slow_clients_do_not_delay_others(impatient: Containers, kind: str, seconds: int) -> None:
    """While 200 clients per service send headers or a body slowly, or read slowly, others are served."""
    try:
        subprocess.run(["slowhttptest", "-h"], capture_output=True, check=False)
    except FileNotFoundError:
        lacking("no slowhttptest")
    counts = ("-c", f"{CONNECTIONS}", "-r", f"{CONNECTIONS}", "-l", f"{seconds + 10}", "-i", "2")
    narrow = ("-w", "10", "-y", "20", "-n", "1", "-z", "5") if kind == "-X" else ()
    with httpx2.Client(trust_env=False, timeout=10) as client, ExitStack() as attackers:
        quiet = p99(client, impatient)
        idle = connected(impatient)
        for url in impatient.urls.values():
            command = ["slowhttptest", kind, *counts, *narrow, "-u", url + "/"]
            attacker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            attackers.callback(attacker.communicate)
            attackers.callback(attacker.kill)
        poll(lambda: connected(impatient) > idle + CONNECTIONS * len(impatient.urls) * 0.9)
        p99(client, impatient, 1)  # what the slow readers asked for has been answered by then
        loaded = p99(client, impatient)
        if kind != "-B":  # no documented directive of Caddy 2.11 limits the time for a body alone
            poll(lambda: connected(impatient) <= idle + 1, seconds + 10)
    # A service that is held up answers after seconds; of a few milliseconds any neighbour makes three times.
    assert {name: time for name, time in loaded.items() if time > max(3 * quiet[name], 0.5)} == {}


def test_a_body_without_an_end_is_closed(impatient: Containers) -> None:
    """A client that sends a byte a second gets no answer, and its connection ends."""
    head = f"POST / HTTP/1.1\r\n{HOST}"
    framings = {"Content-Length: 1000\r\n\r\n": b"x", "Transfer-Encoding: chunked\r\n\r\n": b"1\r\nx\r\n"}

    def seconds(address: tuple[str, int], framing: str, piece: bytes) -> float:
        started = time.monotonic()
        with socket.create_connection(address, timeout=1) as client, suppress(ConnectionError):
            client.sendall((head + framing).encode())
            while time.monotonic() - started < 60:
                client.sendall(piece)
                with suppress(TimeoutError):
                    assert client.recv(65536) == b""
                    break
        return time.monotonic() - started

    urls = [url.removeprefix("http://").split(":") for url in impatient.urls.values()]
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(seconds, (host, int(port)), *framing)
            for host, port in urls
            for framing in framings.items()
        ]
    # EDGE_TRANSFER_TIMEOUT and 10 s more.
    assert all(18 < job.result() < 25 for job in jobs), [job.result() for job in jobs]


def test_200_unfinished_bodies_fit_into_the_edge(impatient: Containers) -> None:
    """Each lacks one byte of a mebibyte. Others are served, and the edge is not killed."""
    url = next(iter(impatient.urls.values()))
    host, port = url.removeprefix("http://").split(":")
    started = impatient.inspect("edge", "{{.State.StartedAt}}")
    request = f"POST / HTTP/1.1\r\n{HOST}Content-Length: {1 << 20}\r\n\r\n".encode() + b"x" * ((1 << 20) - 1)
    with ExitStack() as clients:
        for _ in range(200):
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(request)
        assert httpx2.get(url, trust_env=False, timeout=10).status_code == 200
    assert impatient.inspect("edge", "{{.State.StartedAt}}") == started


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The requests that Gunicorn's own tests refuse, from the source of the locked version."""
    directory = tmp_path_factory.mktemp("corpus")
    lock = (ROOT / "requirements/flask.txt").read_text()
    (directory / "lock").write_text(re.search(r"^gunicorn==.*\n(?:    .*\n)*", lock, re.MULTILINE)[0])
    options = ("--quiet", "--no-deps", "--no-binary", ":all:", "--dest", directory)
    output = run(
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "-r",
        directory / "lock",
        cwd=directory,
        expect=None,
    )
    archive = next(directory.glob("gunicorn-*.tar.gz"), None)
    if not archive:
        lacking(f"no source of Gunicorn: {output}")
    with tarfile.open(archive) as source:
        files = {
            member.name.rpartition("/")[2]: source.extractfile(member).read()
            for member in source
            if "/requests/invalid/" in member.name
        }
    # Without those that Gunicorn refuses under other settings only: the .py beside it makes them.
    names = [name.removesuffix(".http") for name in files if name.endswith(".http")]
    found = {name: decoded(files[f"{name}.http"]) for name in names if b"cfg.set" not in files[f"{name}.py"]}
    assert len(found) > 60
    return found


def decoded(text: bytes) -> bytes:
    """A request as the corpus writes it: lines end in the file, and in the request where escapes say so."""
    text = text.replace(b"\n", b"").replace(rb"\r", b"\r").replace(rb"\n", b"\n")
    text = text.replace(rb"\0", b"\0").replace(rb"\t", b"\t")
    text = re.sub(rb"\\x(..)", lambda digits: bytes.fromhex(digits[1].decode()), text)
    # For a page that is there: what is refused for its address or its missing host alone proves nothing.
    text = re.sub(rb"^(GET|POST|PUT) /[\w/?=.]* ", rb"\1 / ", text)
    return text if b"host:" in text.lower() else text.replace(b"\r\n", f"\r\n{HOST}".encode(), 1)


def statuses(url: str, request: bytes) -> list[bytes]:
    """The status of each answer that a client gets on one connection, until it is closed or silent."""
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=25) as client:
        client.sendall(request)
        while chunk := client.recv(65536):
            answer += chunk
            client.settimeout(2)
    return re.findall(rb"^HTTP/1\.[01] (\d+)", answer, re.MULTILINE)


def test_malformed_requests_are_refused(containers: Containers, corpus: dict[str, bytes]) -> None:
    """Gunicorn's corpus and our own: no success, no server's failure, and nothing slips in behind another."""
    requests = corpus | {name: text.encode("latin-1") for name, text in MALFORMED.items()}
    before = {service: containers.inspect(service, "{{.State.StartedAt}}") for service in containers.urls}
    with ThreadPoolExecutor(100) as pool:
        sent = {
            (name, service): pool.submit(statuses, url, request)
            for name, request in requests.items()
            for service, url in containers.urls.items()
        }
        answers = {case: future.result() for case, future in sent.items()}
    assert {name for (name, _), found in answers.items() if any(s.startswith(b"2") for s in found)} == MENDED
    # Malformed chunks end the upload to the replica, which Caddy reports as 502 (docs/limits.md).
    failures = {
        (name, service): found
        for (name, service), found in answers.items()
        if any(
            status >= b"500"
            and status not in UNKNOWN
            and not (status == b"502" and b"chunked" in requests[name].lower())
            for status in found
        )
    }
    assert failures == {}
    for service in containers.urls:
        lines = [
            line for line in containers.log(service).splitlines() if "/smuggled" in line or "/after" in line
        ]
        assert lines == []
        assert before[service] == containers.inspect(service, "{{.State.StartedAt}}")
        assert httpx2.get(containers.urls[service]).status_code == 200


# What applications choke on: names, control characters, depth, types, and a document that is none.
STRANGE = {
    "a surrogate": b'"\\ud800"',
    "control characters": b'"\\u0000\\u0007\\u001b[31m\\u202e"',
    "an astral character": '"\U0001f600\u0301\u200d"'.encode(),
    "invalid UTF-8": b'"\xff\xfe\xc3\x28"',
    "UTF-16": '"a"'.encode("utf-16"),
    "a deep list": b"[" * 200_000 + b"]" * 200_000,
    "a deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a huge number": b"9" * 100_000,
    "a huge exponent": b"1e999999999",
    "not a number": b"[NaN, Infinity]",
    "many keys": b"{" + b",".join(b'"%d":0' % n for n in range(50_000)) + b"}",
    "nothing": b"",
    "a form": b"author=%00%ff&message=" + "\U0001f600\x1b".encode() * 1000,
    "a form of many fields": b"&".join(b"a%d=" % n for n in range(5_000)),
}
# The second one passes for a token of Django's, which then reads the form.
COOKIES = ("csrftoken=\"; sessionid='", f"csrftoken={'a' * 32}")
TYPES = (
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "text/plain; charset=x",
)


def test_strange_input_is_no_failure_of_the_server(containers: Containers) -> None:
    """Whatever the body, its type and the address: no 5xx, and never a stack trace."""
    paths = ("/", "/echo?%E2%80%AE%1B%00")
    for service, url in containers.urls.items():
        failures = []
        with httpx2.Client(trust_env=False, timeout=30) as client:
            for cookie, path, name, kind in itertools.product(COOKIES, paths, STRANGE, TYPES):
                headers = {"content-type": kind, "cookie": cookie}
                answer = client.post(url + path, content=STRANGE[name], headers=headers)
                if answer.status_code >= 500 or "Traceback" in answer.text:
                    failures.append((cookie, path, name, kind, answer.status_code))
            assert failures == [], service


def test_the_openapi_document_tells_the_truth() -> None:
    """Schemathesis finds no 5xx and no answer that FastAPI's document does not have; /events has no end."""
    with Server("serving.uvicorn", WEB_CONCURRENCY="1") as server:
        server.wait()
        program = Path(sys.executable).parent / "schemathesis"
        options = ("--checks", "all", "--max-examples", "40", "--exclude-path", "/events", "--no-color")
        run(program, "run", f"{server.url}/openapi.json", *options, cwd=os.environ["PYTEST_LOGS"])
        assert "Traceback" not in server.log()
