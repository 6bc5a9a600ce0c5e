"""HTTP/2 without a proxy: off by default, one switch per server, and its limits pinned to versions."""

import asyncio
import json
import re
import shlex
import shutil
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.events import RemoteSettingsChanged, ResponseReceived
from h2.settings import SettingCodes
from websockets.asyncio.client import connect

from tests.support.commands import HOUSEKEEPING, ROOT, free_port, lacking, poll, run
from tests.support.containers import Containers
from tests.support.servers import Server

SECTION = (ROOT / "docs/http2.md").read_text()
OPENSSL, GUNICORN, UVICORN, CURL = re.search(r"```sh\n(.*?)\n```", SECTION, re.DOTALL)[1].splitlines()
HYBRID = json.loads("{" + re.search(r'hybrid reads `("http.*?)`', SECTION)[1] + "}")
PROBE = re.search(r"`(python -m serving.health .*?)`", SECTION)[1]

FLASK = "wsgi_app.flask_site"
LINES = {
    "flask gthread": GUNICORN,
    "django gthread": GUNICORN.replace(FLASK, "wsgi_app.django_site.wsgi"),
    "fastapi gunicorn asgi": GUNICORN.replace(FLASK, "--worker-class asgi asgi_app.main:app"),
    "fastapi hybrid": GUNICORN.replace(
        FLASK, "--worker-class serving.uvicorn.worker.Worker asgi_app.main:app"
    ),
    "fastapi uvicorn": UVICORN,
}
# What to tell curl without TLS, and what it says: the answer's status and version.
PRIOR, UPGRADE, PLAIN = "--http2-prior-knowledge", "--http2", "--http1.1"
HTTP_1, HTTP_2, NOTHING, REFUSED = "200 1.1", "200 2", "000 0", "400 1.1"
CLEARTEXT = [
    ("flask gthread", "both", (HTTP_2, HTTP_2, HTTP_1)),
    ("fastapi gunicorn asgi", "both", (HTTP_2, HTTP_2, HTTP_1)),
    ("flask gthread", "prior-knowledge", (HTTP_2, REFUSED, REFUSED)),
    ("fastapi uvicorn", "", (HTTP_2, HTTP_1, HTTP_1)),
]


def typed(line: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a line sets, and the module with its arguments that it runs."""
    variables, _, command = line.partition(".venv/bin/python -m ")
    return dict(word.split("=", 1) for word in shlex.split(variables)), shlex.split(command)


def server(site: Path, line: str, **environ: str) -> Server:
    """The server that a line starts."""
    variables, command = typed(line)
    return Server(*command, cwd=site, **{"WEB_CONCURRENCY": "1"} | variables | environ)


def ask(site: Path, port: int, *flags: str, scheme: str = "https", path: str = "/livez") -> str:
    """What a client gets that asks with these flags of curl."""
    command = "curl --noproxy * --silent --max-time 10 --cacert cert.pem --output /dev/null --write-out"
    url = f"{scheme}://localhost:{port}{path}"
    return run(*command.split(), "%{http_code} %{http_version}", *flags, url, cwd=site, expect=None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the page's certificate, and a database and static files for Django."""
    for tool in ("openssl", "curl", "h2load"):
        if not shutil.which(tool):
            lacking(f"no {tool} on this machine")
    site = shutil.copytree(ROOT, tmp_path_factory.mktemp("http2") / "site", ignore=HOUSEKEEPING)
    run(*shlex.split(OPENSSL), cwd=site)
    (site / "key.pem").chmod(0o644)  # for the container's user
    for command in ("migrate -v0", "collectstatic --noinput -v0"):
        run(sys.executable, "-m", "wsgi_app.django_site", *command.split(), cwd=site)
    return site


@pytest.fixture(scope="module", params=LINES)
def tls(request: pytest.FixtureRequest, site: Path) -> Iterator[Server]:
    """A server with the switch on."""
    options = json.loads((ROOT / "uvicorn.json").read_text()) | (HYBRID if "hybrid" in request.param else {})
    (site / "uvicorn.json").write_text(json.dumps(options))
    with server(site, LINES[request.param]) as running:
        poll(lambda: ask(site, running.port) != NOTHING, log=running.log)
        shutil.copy(ROOT / "uvicorn.json", site)
        yield running


def test_the_switch_adds_http_2(tls: Server, site: Path) -> None:
    """A client that offers HTTP/2 over TLS gets it, as the page's command shows; others get HTTP/1.1."""
    command = CURL.replace("localhost:8000", f"localhost:{tls.port}")
    assert run(*shlex.split(command), "--noproxy", "*", cwd=site) == "2\n", tls.log()
    assert ask(site, tls.port, path="/") == HTTP_2, tls.log()
    assert ask(site, tls.port, PLAIN, path="/") == HTTP_1, tls.log()


def test_streams_share_a_connection(tls: Server) -> None:
    """A hundred requests, ten at a time on each of two connections: all succeed, with one log line each."""
    output = run("h2load", "-n100", "-c2", "-m10", f"https://localhost:{tls.port}/?streams")
    assert re.search(r"protocol: h2\n.* 100 succeeded, 0 failed", output, re.DOTALL), output + tls.log()
    line = '"GET /?*" 200'
    poll(lambda: tls.log().count(line) >= 100, log=tls.log)
    assert tls.log().count(line) == 100
    assert not re.search("ERROR|Traceback", tls.log()), tls.log()


@pytest.mark.parametrize("tls", [name for name in LINES if "fastapi" in name], indirect=True)
def test_websockets_stay_on_http_1(tls: Server, site: Path) -> None:
    """On the TLS port the WebSocket echoes, over HTTP/1.1."""
    trust = ssl.create_default_context(cafile=site / "cert.pem")

    async def echo() -> str | bytes:
        async with connect(f"wss://localhost:{tls.port}/ws", ssl=trust, proxy=None) as websocket:
            await websocket.send("hello")
            return await websocket.recv()

    assert asyncio.run(asyncio.wait_for(echo(), 10)) == "hello"


@pytest.mark.parametrize("tls", ["fastapi uvicorn"], indirect=True)
def test_no_websocket_over_http_2(tls: Server, site: Path) -> None:
    """Known limit (zttp 0.0.35, uvicorn 0.54.0): WebSockets over HTTP/2 are offered, and get 404."""
    trust = ssl.create_default_context(cafile=site / "cert.pem")
    trust.set_alpn_protocols(["h2"])
    client, events = H2Connection(), {}
    plain = socket.create_connection(("localhost", tls.port), timeout=10)
    with trust.wrap_socket(plain, server_hostname="localhost") as peer:
        client.initiate_connection()
        pseudo = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":path": "/ws"}
        client.send_headers(
            1, [*pseudo.items(), (":authority", "localhost"), ("sec-websocket-version", "13")]
        )
        while not events.keys() >= {RemoteSettingsChanged, ResponseReceived}:
            peer.sendall(client.data_to_send())
            events |= {type(event): event for event in client.receive_data(peer.recv(65536))}
    assert client.remote_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
    assert dict(events[ResponseReceived].headers)[b":status"] == b"404"


def test_sync_promises_http_2_and_fails(site: Path) -> None:
    """Known limit (gunicorn 27.0.1): `sync` advertises h2 to TLS clients, and gives those nothing."""
    with server(site, GUNICORN.replace(FLASK, f"--worker-class sync --threads 1 {FLASK}")) as sync:
        poll(lambda: ask(site, sync.port, PLAIN) == HTTP_1, log=sync.log)
        assert ask(site, sync.port) == NOTHING, sync.log()


@pytest.mark.parametrize(("name", "cleartext", "expected"), CLEARTEXT)
def test_cleartext(name: str, cleartext: str, expected: tuple[str, ...], site: Path) -> None:
    """Known limits (gunicorn 27.0.1, uvicorn 0.54.0): `prior-knowledge` ends HTTP/1.1, zttp lacks upgrade."""
    environ = {"UVICORN_SSL_CERTFILE": "", "UVICORN_SSL_KEYFILE": ""}
    # Only a peer that Gunicorn itself trusts may speak it; serving/ leaves it none.
    flags = f"--http-protocols h2,h1 --http2-cleartext {cleartext} --forwarded-allow-ips 127.0.0.1"
    environ["GUNICORN_CMD_ARGS"] = flags
    with server(site, LINES[name], **environ) as running:
        poll(lambda: ask(site, running.port, PRIOR, scheme="http") != NOTHING, log=running.log)
        answers = tuple(ask(site, running.port, way, scheme="http") for way in (PRIOR, UPGRADE, PLAIN))
        assert answers == expected, running.log()


@pytest.mark.parametrize("name", LINES)
def test_by_default_only_http_1(name: str, site: Path) -> None:
    """Without the switch no server speaks HTTP/2 in any way, nor loads what it needs for that."""
    line = LINES[name][LINES[name].index(".venv") :]
    with server(site, line, PYTHONPROFILEIMPORTTIME="1").wait() as running:
        answers = [ask(site, running.port, way, scheme="http") for way in (PRIOR, UPGRADE, PLAIN)]
        assert answers == [NOTHING, HTTP_1, HTTP_1], running.log()
        loaded = set(re.findall(r"^import time:.*\| +(\w+)$", running.log(), re.MULTILINE))
    assert loaded & {"serving", "h2", "zttp"} == {"serving"}


@pytest.mark.parametrize("name", ["flask gthread", "django gthread", "fastapi uvicorn"])
def test_the_switch_works_in_a_container(name: str, containers: Containers, site: Path) -> None:
    """The same variables beside the mounted certificate, and the page's health check."""
    service, port = name.partition(" ")[0], free_port()
    container = f"{containers.project}-http2-{service}"
    options = ["--detach", "--no-deps", f"--name={container}", f"--publish=127.0.0.1:{port}:8000"]
    options += [f"--volume={site}/{file}:/app/{file}:ro" for file in ("cert.pem", "key.pem")]
    environ = typed(LINES[name])[0] | {"SSL_CERT_FILE": "cert.pem"}
    options += [f"--env={variable}={value}" for variable, value in environ.items()]
    containers.compose("run", *options, service)
    try:
        poll(lambda: ask(site, port) == HTTP_2, log=lambda: run("docker", "logs", container))
        assert ask(site, port, PLAIN) == HTTP_1
        run("docker", "exec", container, *PROBE.split())
    finally:
        run("docker", "rm", "--force", container)
