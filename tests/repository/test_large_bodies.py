"""Uploads of 100 MiB, downloads of 300 MiB, streams and long requests pass the edge, fast and slow."""

import hashlib
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPException, HTTPResponse
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import poll, run
from tests.support.containers import MEBIBYTE, Containers, up_until_teardown

pytestmark = pytest.mark.alone

UPLOAD, DOWNLOAD = 100 * MEBIBYTE, 300 * MEBIBYTE
# Bytes per second.
SLOW_UPLOAD, SLOW_DOWNLOAD = 1_000_000, 2_000_000
SERVICES = ("django", "flask", "fastapi")
EVENTS = 4

# A module of each application, and what they share. `/upload` says what arrived.
SOURCES = {
    "shared.py": """
import hashlib, json, time

def received(file):
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(65536):
        digest.update(chunk)
        size += len(chunk)
    return {"size": size, "digest": digest.hexdigest()}

def events():
    for number in range(4):
        yield f"data: {number}\\n\\n".encode()
        time.sleep(1)
""",
    "settings.py": """
from serving import settings
SECRET_KEY, ALLOWED_HOSTS, ROOT_URLCONF, INSTALLED_APPS = "x", ["*"], "large.urls", ["large"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/data/large.sqlite3"}}
MEDIA_ROOT = "/data/media"
DATA_UPLOAD_MAX_MEMORY_SIZE = settings.size("MAX_BODY", 0)
""",
    "models.py": """
from django.db import models
class Upload(models.Model):
    file = models.FileField()
""",
    "urls.py": """
import time
from django import http
from django.urls import path
from large import shared
from large.models import Upload

def upload(request):
    stored = Upload.objects.create(file=request.FILES["file"])
    try:
        with stored.file.open() as file:
            return http.JsonResponse(shared.received(file))
    finally:
        stored.file.delete()

urlpatterns = [
    path("", lambda request: http.HttpResponse("here")),
    path("upload", upload),
    path("download", lambda request: http.FileResponse(open("/large/download", "rb"))),
    path("some/path", lambda request: http.StreamingHttpResponse(shared.events(), "text/event-stream")),
    path("wait", lambda request: time.sleep(60) or http.HttpResponse("waited")),
]
""",
    "django_site.py": """
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
""",
    "flask_site.py": """
import time
import flask
from large import shared
from serving import settings

app = flask.Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = settings.size("MAX_BODY", 0)
app.add_url_rule("/", "index", lambda: "here")
app.add_url_rule("/download", "download", lambda: flask.send_file("/large/download"))
app.add_url_rule("/wait", "wait", lambda: time.sleep(60) or "waited")

@app.get("/some/path")
def stream():
    return flask.Response(shared.events(), mimetype="text/event-stream")

@app.post("/upload")
def upload():
    return shared.received(flask.request.files["file"])
""",
    "fastapi_site.py": """
import asyncio
from fastapi import FastAPI, UploadFile
from fastapi.responses import FileResponse, StreamingResponse
from large import shared
from serving import settings
from serving.asgi import Service

api = FastAPI(max_body_size=settings.size("MAX_BODY", 0))
app = Service(api)

@api.get("/")
async def index():
    return "here"

@api.post("/upload")
def upload(file: UploadFile):
    return shared.received(file.file)

@api.get("/download")
async def download():
    return FileResponse("/large/download")

@api.get("/some/path")
async def stream():
    return StreamingResponse(shared.events(), media_type="text/event-stream")

@api.get("/wait")
async def wait():
    await asyncio.sleep(60)
    return "waited"
""",
}
COMMANDS = {
    "migrate": ["django", "migrate", "--run-syncdb", "--verbosity", "0"],
    "django": ["serving.gunicorn", "serving.wsgi:service('large.django_site')"],
    "flask": ["serving.gunicorn", "serving.wsgi:service('large.flask_site:app')"],
    "fastapi": ["serving.uvicorn", "large.fastapi_site:app"],
}
BOUNDARY = "boundary"
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def large(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Applications for large files, with the settings that docs/limits.md asks for."""
    directory = tmp_path_factory.mktemp("large")
    (directory / "large").mkdir()
    for name, text in SOURCES.items():
        (directory / "large" / name).write_text(text)
    # What FastAPI needs for forms.
    install = ("pip", "install", "--quiet", "--target", directory, "python-multipart==0.0.20")
    run(Path(sys.executable).with_name("uv"), *install)
    (directory / "download").write_bytes(secrets.token_bytes(DOWNLOAD))
    directory.chmod(0o755)
    environment = {"PYTHONPATH": "/large", "DJANGO_SETTINGS_MODULE": "large.settings"}
    services = {
        name: {
            "command": ["python", "-m", *command],
            "environment": environment,
            "volumes": [f"{directory}:/large:ro"],
        }
        for name, command in COMMANDS.items()
    }
    (directory / "large.yml").write_text(json.dumps({"services": services}))
    memory = {f"{service.upper()}_MEMORY": "1g" for service in SERVICES}
    stack = Containers(
        directory / "large.yml", MAX_BODY="110MiB", TMP_SIZE="440m", REQUEST_TIMEOUT="70", **memory
    )
    stack.directory = directory
    yield from up_until_teardown(stack)


@pytest.fixture(scope="module")
def content() -> bytes:
    """What is uploaded."""
    return secrets.token_bytes(UPLOAD)


def digest(data: bytes) -> str:
    """The name of some data."""
    return hashlib.sha256(data).hexdigest()


def connect(url: str, head: str) -> socket.socket:
    """A connection on which a request has been begun."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=100)
    client.sendall(f"{head} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n".encode())
    return client


def response(client: socket.socket) -> HTTPResponse:
    """The answer's head, and what follows."""
    answer = HTTPResponse(client)
    answer.begin()
    return answer


def paced(size: int, rate: int) -> Iterator[slice]:
    """The pieces of some data, at so many bytes per second; as fast as can be with 0."""
    started, sent = time.monotonic(), 0
    while sent < size:
        yield slice(sent, sent := min(size, sent + 65536))
        if rate:
            time.sleep(max(0, started + sent / rate - time.monotonic()))


def upload(url: str, content: bytes, rate: int = 0, chunked: bool = False) -> str:
    """Send a form with one file; the answer's document."""
    size = len(PART) + len(content) + len(END)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    with connect(url, "POST /upload") as client:
        kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
        client.sendall(f"{kind}\r\n{framing}\r\n\r\n".encode())

        def send(data: bytes) -> None:
            client.sendall(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

        send(PART)
        for piece in paced(len(content), rate):
            send(content[piece])
        send(END)
        if chunked:
            client.sendall(b"0\r\n\r\n")
        return response(client).read().decode()


def download(url: str, rate: int) -> tuple[int, str]:
    """The size and the digest of what arrives at so many bytes per second."""
    found, size = hashlib.sha256(), 0
    with connect(url, "GET /download") as client:
        client.sendall(b"\r\n")
        answer = response(client)
        for piece in paced(DOWNLOAD, rate):
            data = answer.read(piece.stop - piece.start)
            found.update(data)
            size += len(data)
    return size, found.hexdigest()


def wait(url: str) -> int:
    """The status of a request that takes a minute."""
    return httpx2.get(f"{url}/wait", trust_env=False, timeout=100).status_code


def assert_received(answers: dict[str, str], content: bytes) -> None:
    """Every application got the file whole."""
    expected = {"size": len(content), "digest": digest(content)}
    assert {name: json.loads(answer) for name, answer in answers.items()} == dict.fromkeys(answers, expected)


def assert_clean(stack: Containers) -> None:
    """No container was restarted, and nothing is left in /tmp."""
    for service in ("edge", *SERVICES):
        assert stack.inspect(service, "{{.RestartCount}} {{.State.OOMKilled}}") == "0 false", service
        poll(lambda name=service: is_empty(stack, name))
    print("peak memory:", {name: f"{peak(stack, name)} MiB" for name in ("edge", *SERVICES)})


def is_empty(stack: Containers, service: str) -> bool:
    """Whether /tmp has no file, and no process holds one that was deleted."""
    used = stack.exec(service, "df", "/tmp").splitlines()[-1].split()[2]
    return used == "0" and stack.exec(service, "ls", "-A", "/tmp") == ""


def peak(stack: Containers, service: str) -> int:
    """The most memory that the container has had, with cached files and /tmp, in MiB."""
    files = ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes")
    return int(stack.exec(service, "sh", "-c", f"cat {' '.join(files)} 2>/dev/null || true")) // MEBIBYTE


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
def test_a_large_upload_arrives(large: Containers, content: bytes, chunked: bool) -> None:
    """One after the other, as fast as each application takes it."""
    assert_received({name: upload(large.urls[name], content, 0, chunked) for name in SERVICES}, content)
    assert_clean(large)


@pytest.mark.parametrize("service", SERVICES)
def test_an_upload_without_space_leaves_no_file(large: Containers, content: bytes, service: str) -> None:
    """It gets an error, and its half file takes no space afterwards."""
    fill = f"open('/tmp/filler', 'wb').write(bytes({400 * MEBIBYTE}))"
    large.exec(service, "python", "-c", fill)
    try:
        for chunked in (False, True):
            # The response may come, and the connection be closed, before the end of the body.
            with suppress(OSError, HTTPException):
                assert "digest" not in upload(large.urls[service], content, 0, chunked)
    finally:
        large.exec(service, "rm", "/tmp/filler")
    assert_clean(large)


def test_four_large_uploads_arrive(large: Containers, content: bytes) -> None:
    """At the same time, into each application."""
    with ThreadPoolExecutor() as pool:
        for service in SERVICES:
            jobs = {f"{service} {n}": pool.submit(upload, large.urls[service], content) for n in range(4)}
            assert_received({name: job.result() for name, job in jobs.items()}, content)
    assert_clean(large)


def test_slow_transfers_and_long_requests_complete(large: Containers, content: bytes) -> None:
    """An upload of 100 s, a download of 150 s, and a request of 60 s, at the same time everywhere."""
    whole = run("sha256sum", large.directory / "download").split()[0]
    kinds: dict[str, Callable[[str], object]] = {
        "upload": lambda url: upload(url, content, SLOW_UPLOAD),
        "download": lambda url: download(url, SLOW_DOWNLOAD),
        "wait": wait,
    }
    with ThreadPoolExecutor(len(kinds) * len(SERVICES)) as pool:
        jobs = {
            kind: {service: pool.submit(kinds[kind], large.urls[service]) for service in SERVICES}
            for kind in kinds
        }
        found = {
            kind: {service: job.result() for service, job in group.items()} for kind, group in jobs.items()
        }
    assert found["download"] == dict.fromkeys(SERVICES, (DOWNLOAD, whole))
    assert found["wait"] == dict.fromkeys(SERVICES, 200)
    assert_received(found["upload"], content)
    assert_clean(large)


@pytest.mark.parametrize("service", SERVICES)
def test_a_stream_of_any_path_arrives_as_it_is_sent(large: Containers, service: str) -> None:
    """Events without a length, a second apart, to a client that takes compression."""
    arrivals = []
    headers = {"accept-encoding": "gzip"}
    with httpx2.stream("GET", f"{large.urls[service]}/some/path", headers=headers, trust_env=False) as stream:
        assert "content-length" not in stream.headers
        for line in stream.iter_lines():
            if line.startswith("data:"):
                arrivals.append(time.monotonic())
    assert len(arrivals) == EVENTS
    assert arrivals[-1] - arrivals[0] > EVENTS - 2
    assert min(later - earlier for earlier, later in pairwise(arrivals)) > 0.5


def held(stack: Containers, service: str, count: int, sockets: ExitStack) -> None:
    """Begin so many uploads, larger than the edge's buffer, and do not finish them."""
    for _ in range(count):
        client = sockets.enter_context(connect(stack.urls[service], "POST /upload"))
        kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {4 * MEBIBYTE}"
        client.sendall(f"{kind}\r\n\r\n".encode() + PART + b"x" * 2 * MEBIBYTE)


def answered(stack: Containers, service: str, count: int = 10, seconds: float = 5) -> int:
    """How many of some requests, one after the other, get their page in time."""

    def ask() -> bool:
        try:
            return httpx2.get(stack.urls[service], trust_env=False, timeout=seconds).status_code == 200
        except httpx2.TimeoutException:
            return False

    return sum(ask() for _ in range(count))


@pytest.mark.parametrize("service", ["django", "flask"])
def test_uploads_beyond_the_buffer_occupy_threads_of_gunicorn(large: Containers, service: str) -> None:
    """With all threads but one busy, nearly all others are served; with all of them busy, requests wait."""
    threads = 12
    with ExitStack() as sockets:
        held(large, service, threads - 1, sockets)
        time.sleep(2)
        # A worker without a free thread takes one now and then.
        assert answered(large, service) >= 8
        # On a connection that the edge keeps open, one may come to the worker without a free thread.
        poll(lambda: held(large, service, 1, sockets) or not answered(large, service, 3), 60)
    poll(lambda: answered(large, service, 1))
    assert_clean(large)


def test_uploads_beyond_the_buffer_occupy_no_thread_of_fastapi(large: Containers) -> None:
    """A hundred at the same time; their parts are in /tmp."""
    with ExitStack() as sockets:
        held(large, "fastapi", 100, sockets)
        time.sleep(2)
        assert answered(large, "fastapi") == 10
    poll(lambda: answered(large, "fastapi") == 10)
    assert_clean(large)
