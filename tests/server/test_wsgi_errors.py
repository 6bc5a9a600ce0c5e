"""What an application or a client does wrong is answered, and logged with a request id, in every mode."""

import io
import re
import socket
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path

import httpx2
import pytest

from serving.wsgi import Service
from tests.support.commands import poll
from tests.support.servers import Server

APP = """
import sys
from serving.wsgi import Service

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise RuntimeError("intended")
    if path == "/oserror":
        raise ConnectionRefusedError("another service")
    if path == "/exit":
        sys.exit("intended")
    if path == "/read":
        environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/length":
        return [environ["CONTENT_LENGTH"].encode()]
    return chunks(path)

def chunks(path):
    if path == "/first":
        raise RuntimeError("intended")
    if path == "/first-oserror":
        raise FileNotFoundError("intended")
    yield b"ok"
    if path == "/second":
        raise RuntimeError("intended")

application = Service(app)
"""
CLASSES = {
    "gthread": (),
    "stock gthread": ("--worker-class", "gthread"),
    "sync": ("--worker-class", "sync", "--threads", "1"),
    "gevent": ("--worker-class", "gevent"),
}
ID = r"\[[0-9a-f]{32}\]"


@pytest.fixture(params=CLASSES, scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A worker of each class."""
    if request.param == "gevent":
        pytest.importorskip("gevent")
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.py").write_text(APP)
    command = ("serving.gunicorn", *CLASSES[request.param], "--workers", "1", "app")
    with Server(*command, PYTHONPATH=str(folder)) as server:
        yield server.wait()


def lines(server: Server, pattern: str) -> list[str]:
    """The log's lines that match, once there is one."""
    return poll(lambda: re.findall(f"^.*{pattern}.*$", server.log(), re.MULTILINE), log=server.log)


@pytest.mark.parametrize("path", ["/raise", "/first", "/oserror", "/first-oserror"])
def test_an_exception_is_answered_with_500(server: Server, path: str) -> None:
    """Also an OSError, which Gunicorn would take for one of the connection's."""
    answer = httpx2.get(f"{server.url}{path}?token=hunter2", trust_env=False)
    assert answer.status_code == 500
    identity = answer.headers["x-request-id"]
    (access,) = lines(server, rf'\[{identity}\] 127.0.0.1 "GET {path}\?')
    assert re.search(rf'"GET {path}\?token=\*" 500 ', access), access
    assert lines(server, rf"ERROR .*\[{identity}\] Error handling request")
    assert "hunter2" not in server.log()


def test_an_exit_ends_no_worker(server: Server) -> None:
    """`sys.exit` in a view is answered with 500; the worker, and what it serves, lives on."""
    if "SyncWorker" in server.log() or "worker: sync" in server.log() or "worker: gevent" in server.log():
        pytest.skip("this class serves in the main thread, where an exit is the server's own")
    before = server.log().count("Booting worker")
    assert httpx2.get(server.url + "/exit", trust_env=False).status_code == 500
    assert httpx2.get(server.url + "/", trust_env=False).status_code == 200
    assert server.log().count("Booting worker") == before


def test_an_exception_after_the_first_chunk_breaks_the_response_off(server: Server) -> None:
    """The client must not take it for complete; the line has the status that was sent."""
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(server.url + "/second", trust_env=False)
    assert len(lines(server, '"GET /second" 200 ')) == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /twice HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /twice HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Type: a/b\r\n\r\n", 400),
        (b"POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /space\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /x?token=hunter2 HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /long HTTP/1.1\r\nHost: a\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    ],
)
def test_a_malformed_request_is_answered(server: Server, request_bytes: bytes, status: int) -> None:
    """With its status and an id; the log has one warning without a traceback, and no secret."""
    before = len(server.log())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request_bytes)
        answer = client.recv(65536)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    identity = re.search(rb"\r\nX-Request-ID: ([0-9a-f]{32})\r\n", answer)
    assert identity
    word = identity[1].decode()
    poll(lambda: f"[{word}] Invalid request from ip=127.0.0.1" in server.log(), log=server.log)
    said = server.log()[before:]
    assert "Traceback" not in said
    assert " ERROR " not in said
    assert "hunter2" not in said


def test_an_id_is_not_that_of_an_earlier_request(server: Server) -> None:
    """Threads are used again; a malformed request gets an id of its own."""
    known = {httpx2.get(server.url, trust_env=False).headers["x-request-id"] for _ in range(12)}
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"nonsense\r\n\r\n")
            known.add(re.search(rb"X-Request-ID: (\w+)", client.recv(65536))[1].decode())
    assert len(known) == 18


def test_a_client_that_leaves_while_it_sends_is_no_error(server: Server) -> None:
    """No 500 and no traceback: a stranger could fill the log with them."""
    before = len(server.log())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert httpx2.get(server.url + "/", trust_env=False).status_code == 200
    assert "Traceback" not in server.log()[before:]


ASGI = """
from serving.asgi import Service

async def app(scope, receive, send):
    if scope["type"] == "http":
        raise RuntimeError("intended")

app = Service(app)
"""


@pytest.mark.parametrize(
    ("worker_class", "status"),
    [("asgi", 400), ("serving.uvicorn.worker.Worker", 400)],
    ids=["asgi", "fastapi-hybrid"],
)
def test_asyncio_workers_answer_too(worker_class: str, status: int, tmp_path: Path) -> None:
    """500 for an exception, 400 for nonsense, also where Gunicorn only manages the processes."""
    (tmp_path / "app.py").write_text(ASGI)
    command = ("serving.gunicorn", "--worker-class", worker_class, "--workers", "1", "app:app")
    with Server(*command, PYTHONPATH=str(tmp_path), WORKLOAD="asyncio").wait() as server:
        answer = httpx2.get(server.url + "/x?token=hunter2", trust_env=False)
        assert answer.status_code == 500
        (line,) = lines(server, rf"INFO .*\[{answer.headers['x-request-id']}\]")
        assert '"GET /x?token=*" 500 ' in line
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert client.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())
        assert "hunter2" not in server.log(), server.log()


def test_a_body_in_chunks_arrives_whole_or_is_refused(server: Server) -> None:
    """An application that reads CONTENT_LENGTH alone knows its length."""
    whole = httpx2.post(server.url + "/length", content=iter([b"who", b"le"]), trust_env=False)
    assert (whole.status_code, whole.text) == (200, "5")
    parts = iter([b"x" * 1024 * 1024, b"x"])
    assert httpx2.post(server.url + "/length", content=parts, trust_env=False).status_code == 413


HEAD = b"POST /length HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status", "body"),
    [
        pytest.param(HEAD + b"\r\n0\r\n\r\n", 200, b"0", id="empty"),
        pytest.param(HEAD + b"\r\n3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", 200, b"3", id="trailers"),
        pytest.param(HEAD + b"\r\n" + b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n", 200, b"10000", id="small"),
        pytest.param(HEAD + b"\r\n0\r\nX-Sum\r\n\r\n", 400, b"", id="malformed trailer"),
        pytest.param(HEAD + b"\r\n3\r\nabcd\r\n0\r\n\r\n", 400, b"", id="a byte more"),
        pytest.param(HEAD + b"\r\n-3\r\nabc\r\n0\r\n\r\n", 400, b"", id="negative"),
        pytest.param(HEAD + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400, b"", id="two lengths"),
        pytest.param(HEAD.replace(b"/1.1", b"/1.0") + b"\r\n0\r\n\r\n", 400, b"", id="HTTP/1.0"),
        pytest.param(HEAD.replace(b"chunked", b"gzip") + b"\r\n0\r\n\r\n", 400, b"", id="not chunked"),
        pytest.param(HEAD.replace(b"chunked", b"chunked, x") + b"\r\n", 501, b"", id="unknown coding"),
    ],
)
def test_every_form_of_a_chunked_body_is_answered(
    server: Server, request_bytes: bytes, status: int, body: bytes
) -> None:
    """The application gets the length of a valid body, and the client an answer to an invalid one."""
    before = len(server.log())
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request_bytes)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    if status == 200:
        assert answer.partition(b"\r\n\r\n")[2].split(b"\r\n")[1] == body, answer
    assert "Traceback" not in server.log()[before:]


def test_a_client_may_ask_before_it_sends_chunks(server: Server) -> None:
    """`Expect: 100-continue`, as curl sends it with a large body."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\n\r\n")
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"2\r\nab\r\n0\r\n\r\n")
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert b"\r\n2\r\n" in answer


def test_a_connection_is_reused_after_a_chunked_body(server: Server) -> None:
    """What follows the last chunk is the next request, also where trailers came between."""
    if "worker: sync" in server.log():
        pytest.skip("this class closes each connection")
    body = b"\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(HEAD.replace(b"close", b"keep-alive") + body + HEAD + body)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 200 OK") == 2, answer


def test_a_full_disk_is_not_the_client_s_fault(tmp_path: Path) -> None:
    """A chunked body of more than 1 MiB goes through a temporary file; without one the answer is 500."""
    (tmp_path / "app.py").write_text(APP + "\nimport tempfile\ntempfile.tempdir = '/nonexistent'\n")
    command = ("serving.gunicorn", "--workers", "1", "app")
    with Server(*command, PYTHONPATH=str(tmp_path), MAX_BODY="3MiB").wait() as server:
        parts = iter([b"x" * 2 * 1024 * 1024, b"x"])
        assert httpx2.post(server.url + "/length", content=parts, trust_env=False).status_code == 500
        poll(lambda: "No such file or directory: '/nonexistent" in server.log(), log=server.log)


def test_a_body_in_chunks_leaves_no_temporary_file() -> None:
    """It is closed with the response, although the application keeps the request."""
    kept = []

    def app(environ: dict, start_response: Callable) -> list[bytes]:
        kept.append(environ)
        start_response("200 OK", [])
        return [b"%d" % len(environ["wsgi.input"].read())]

    environ: dict = {"PATH_INFO": "/", "REQUEST_METHOD": "POST", "HTTP_TRANSFER_ENCODING": "chunked"}
    environ["wsgi.input"] = io.BytesIO(b"x" * 100_000)
    # The id of this request is not that of the next test.
    body = copy_context().run(Service(app), environ, lambda *_: None)
    assert b"".join(body) == b"100000"
    body.close()
    assert kept[0]["wsgi.input"].closed
