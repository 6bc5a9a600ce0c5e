"""`python -m checks.smoke URL`: what a deployment must answer, asked from outside.

CA=FILE trusts a certificate authority of your own, INSECURE=1 any certificate. WS=/path names the
WebSocket (/ws); a path of socket.io is asked in its protocol. The exit code is 1 when a check fails.
"""

import asyncio
import json
import re
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.protocol import State

from checks.site import Answer, Site
from serving import health, settings

TRACE = re.compile(r"Traceback \(most recent|DEBUG = True|Werkzeug Debugger|File (&quot;|\")/")
VERSION = re.compile(r"\b(apache|caddy|gunicorn|nginx|python|uvicorn|werkzeug)/\d", re.IGNORECASE)
HASHED = re.compile(r"""(?:href|src)=["']([^"'?]*[.-][0-9a-f]{8,}\.(?:css|js|svg|png|woff2))["'?]""")
NAME, ADDRESS, IDENTITY = "forged.example", "203.0.113.7", "forged-request-id"
UNKNOWN = "/no/such/address"
YEAR = 31_536_000
# Sessions of socket.io that are open at the same time.
SESSIONS = 16


class Broken(Exception):  # noqa: N818  a result, not an error
    """What is wrong."""


class NotApplicable(Exception):  # noqa: N818  a result, not an error
    """Why the check says nothing about this deployment."""


Check = Callable[[Site], None]
CHECKS: dict[str, Check] = {}
# The line of this repository that a broken check is about: a file, and how the line begins.
PLACES = {
    "health": ("serving/health.py", "PATHS = "),
    "request id": ("serving/peers.py", "def request_id_for"),
    "keep-alive": ("gunicorn.conf.py", "worker_class = "),
    "static files": ("wsgi_app/django_site/settings.py", '"wsgi_app.django_site.static_files'),
    "errors": ("wsgi_app/django_site/settings.py", "DEBUG = "),
    "WebSocket": ("uvicorn.json", '"ws_max_size"'),
    "server's name": ("deploy/edge/snippets/common.caddy", "-Server"),
    "security headers": ("deploy/edge/snippets/common.caddy", "header ?X-Frame-Options"),
    "forged headers": ("docker-compose.yml", "FORWARDED_ALLOW_IPS: "),
    "HTTP/2": ("deploy/edge/Caddyfile", "https_port"),
}


def check(name: str) -> Callable[[Check], Check]:
    """Register a check, which raises Broken or NotApplicable."""
    return lambda function: CHECKS.setdefault(name, function)


@check("health")
def probes_answer(site: Site) -> None:
    """/livez and /readyz answer 200, and no cache stores the answer; a proxy may hide /readyz (404)."""
    for path in health.PATHS:
        answer = site.ask(path)
        if path == health.READY and answer.status == 404:
            continue
        control = answer.headers.get("Cache-Control")
        if answer.status != 200 or "no-store" not in (control or ""):
            raise Broken(f"{path}: {answer.status}, Cache-Control: {control}")


def hashed_files(site: Site) -> list[str]:
    """The files of this site with a hash in their name that its page links."""
    links = {urljoin(site.url + "/", link) for link in HASHED.findall(site.page.text)}
    found = [link.removeprefix(site.url) for link in links if link.startswith(site.url + "/")]
    if not site.page.is_page or not found:
        raise NotApplicable("no page that links files with a hash in their name")
    return found


@check("static files")
def static_files_are_cached_and_compressed(site: Site) -> None:
    """A file with a hash in its name may be cached for a year, and text is compressed."""
    for path in hashed_files(site):
        answer, compressed = site.ask(path), site.ask(path, headers={"Accept-Encoding": "gzip"})
        control = answer.headers.get("Cache-Control", "nothing")
        age = re.search(r"max-age=(\d+)", control)
        if not age or int(age[1]) < YEAR:
            raise Broken(f"{path}: Cache-Control: {control}")
        is_text = path.endswith(("css", "js")) and len(answer.body) > 500
        if is_text and compressed.headers.get("Content-Encoding") != "gzip":
            raise Broken(f"{path}: not compressed for a client that accepts gzip")


@check("errors")
def errors_are_short(site: Site) -> None:
    """An unknown address answers 404, TRACE echoes nothing, and errors show no traceback and no version."""
    unknown, refused = site.follow(UNKNOWN), site.ask("/", "TRACE", {"X-Echo": NAME})
    if unknown.status != 404 or NAME in refused.text or refused.status == 500:
        raise Broken(f"{UNKNOWN}: {unknown.status}; TRACE: {refused.status} {refused.text[:80]!r}")
    for answer in (unknown, refused):
        if answer.status >= 400 and len(answer.body) > site.largest:
            raise Broken(f"{answer.status}: {len(answer.body)} bytes, more than {site.largest}")
        if found := TRACE.search(answer.text) or VERSION.search(answer.text):
            raise Broken(f"{answer.status}: shows {found[0]!r}")


@check("server's name")
def no_version_is_shown(site: Site) -> None:
    """No header names the version of a server."""
    server, powered = (site.page.headers.get(name, "") for name in ("Server", "X-Powered-By"))
    if re.search(r"/\d", server) or powered:
        raise Broken(f"Server: {server}, X-Powered-By: {powered}")


@check("security headers")
def pages_are_protected(site: Site) -> None:
    """A page cannot be framed or sniffed and sends no referrer; a public name requires TLS."""
    headers = site.page.headers
    if not site.tls and not site.page.is_page:
        raise NotApplicable("no page, and no TLS")
    needed = ["X-Content-Type-Options", "Referrer-Policy"]
    if site.tls and not site.local:
        needed.append("Strict-Transport-Security")
    if "frame-ancestors" not in headers.get("Content-Security-Policy", ""):
        needed.append("X-Frame-Options")
    if missing := [name for name in needed if name not in headers]:
        raise Broken(f"no {', '.join(missing)}")
    cookies = headers.get_all("Set-Cookie", []) if site.tls else []
    if exposed := [cookie for cookie in cookies if "; secure" not in cookie.lower()]:
        raise Broken(f"a cookie that is not Secure: {exposed[0].partition('=')[0]}")


@check("forged headers")
def forged_headers_are_ignored(site: Site) -> None:
    """Only a trusted proxy names a client, a host, a scheme or a request id."""
    scheme = "http" if site.tls else "https"
    forged = {
        "Forwarded": f"for={ADDRESS};host={NAME};proto={scheme}",
        "X-Forwarded-For": ADDRESS,
        "X-Forwarded-Host": NAME,
        "X-Forwarded-Prefix": f"/{NAME}",
        "X-Forwarded-Proto": scheme,
        "X-Real-IP": ADDRESS,
        "X-Request-ID": IDENTITY,
    }
    for path in ("/", UNKNOWN):
        plain, answer = site.ask(path), site.ask(path, headers=forged)
        if site.local and not site.tls and answer.headers.get("X-Request-ID") == IDENTITY:
            raise NotApplicable("this machine is a proxy that it trusts")
        shown = f"{answer.headers}{answer.text}"
        if found := [value for value in (ADDRESS, NAME, IDENTITY) if value in shown]:
            raise Broken(f"{path}: trusts {', '.join(found)}")
        moved = plain.headers.get("Location") != answer.headers.get("Location")
        if plain.status != answer.status or moved:
            raise Broken(f"{path}: trusts X-Forwarded-Proto: {answer.status} instead of {plain.status}")


@check("request id")
def requests_have_an_id(site: Site) -> None:
    """X-Request-ID is returned, well-formed and different each time."""
    first, second = (site.ask("/").headers.get("X-Request-ID", "") for _ in range(2))
    if not re.fullmatch(r"[\w.-]{8,128}", first) or first == second:
        raise Broken(f"X-Request-ID: {first or 'none'}, then {second or 'none'}")


def websocket_path() -> tuple[str, bool]:
    """The path of the WebSocket, and whether it is one of socket.io."""
    path = settings.text("WS", "/ws")
    is_socket_io = "socket.io" in path
    if is_socket_io and "EIO=" not in path:
        path = f"{path.rstrip('?/')}/?EIO=4&transport=websocket"
    return path, is_socket_io


@check("WebSocket")
def websocket_closes_in_order(site: Site) -> None:
    """A normal close is answered with 1000, a message of unbounded length with 1009."""
    path, is_socket_io = websocket_path()
    # Not the client with threads: over TLS, about one connection in 300 fails inside it.
    normal, unbounded, was_closed = asyncio.run(close_codes(site, path))
    # The libraries of socket.io close with different codes; the connection must end.
    if (normal, unbounded) != (1000, 1009) and not (is_socket_io and was_closed):
        raise Broken(f"{path}: normal close {normal}, message of unbounded length {unbounded}")


async def close_codes(site: Site, path: str) -> tuple[int | None, int | None, bool]:
    """The codes after a normal close and after a message of unbounded length; whether the latter closed."""
    try:
        async with websocket(site, path) as leaving:
            await leaving.close()
    except (InvalidStatus, ValueError) as error:  # ValueError: it redirects, and a socket is given
        raise NotApplicable(f"{path}: {error}") from error
    async with websocket(site, path) as flooding:
        # The head of a binary message, masked, of 2**40 bytes.
        flooding.transport.write(b"\x82\xff" + (2**40).to_bytes(8) + bytes(4))
        with suppress(TimeoutError, ConnectionClosed):
            async with asyncio.timeout(3):
                while True:
                    await flooding.recv()
        # Here: leaving the block closes it, whatever the server has done.
        return leaving.close_code, flooding.close_code, flooding.state is State.CLOSED


def websocket(site: Site, path: str) -> connect:
    """A WebSocket to this path."""
    site.context.set_alpn_protocols(["http/1.1"])
    options: dict[str, Any] = {"origin": site.url, "proxy": None, "close_timeout": 3}
    if site.tls:
        options |= {"ssl": site.context, "server_hostname": site.host}
    return connect(f"ws{site.url.removeprefix('http')}{path}", sock=site.connect(), **options)


@check("sessions in memory")
def sessions_are_found_again(site: Site) -> None:
    """A session of socket.io is known to whichever process answers: state in memory needs one process."""
    path, is_socket_io = websocket_path()
    if not is_socket_io:
        raise NotApplicable("WS names no path of socket.io")
    poll = path.replace("transport=websocket", "transport=polling")
    if (opened := site.ask(poll)).status != 200 or not session_id(opened):
        raise NotApplicable(f"{poll}: {opened.status}")
    # All at the same time: a proxy sends requests that follow one another to the same process.
    with ThreadPoolExecutor(SESSIONS) as pool:
        lost = sum(pool.map(lambda _: loses_session(site, poll), range(SESSIONS)))
    if lost:
        raise Broken(f"{lost} of {SESSIONS} sessions were lost; state in memory needs WEB_CONCURRENCY=1")


def session_id(opened: Answer) -> str:
    """The session that socket.io has opened; "" if it has not."""
    found = re.search(r"\{.*\}", opened.text)
    return str(json.loads(found[0]).get("sid", "")) if found else ""


def loses_session(site: Site, poll: str) -> bool:
    """Whether a new session is unknown to one of the next requests."""
    session = session_id(site.ask(poll))
    # A heartbeat of the client, each on a connection of its own.
    heartbeat = (f"{poll}&sid={session}", "POST", {"Content-Type": "text/plain"}, b"3")
    return any(site.ask(*heartbeat).status != 200 for _ in range(3))


@check("keep-alive")
def connections_stay_open(site: Site) -> None:
    """More than one request uses a connection, also after an error."""
    connection = site.open()
    try:
        for path in ("/", UNKNOWN, "/"):
            site.ask(path, on=connection)
            if connection.sock is None:
                raise Broken(f"closed after {path}")
    finally:
        connection.close()


@check("HTTP/2")
def http_2_is_spoken(site: Site) -> None:
    """HTTP/2 is offered in the TLS handshake, and SETTINGS are answered with SETTINGS."""
    if not site.tls:
        raise NotApplicable("no TLS")
    with site.encrypt("h2", "http/1.1") as client:
        if client.selected_alpn_protocol() != "h2":
            raise Broken("not offered")
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        if client.recv(9)[3:4] != b"\4":
            raise Broken("offered, but not spoken")


def examine(site: Site) -> dict[str, tuple[str, str]]:
    """For each check: ok, broken or not applicable, and what was found."""
    report = {}
    for name, function in CHECKS.items():
        try:
            function(site)
            report[name] = ("ok", str(function.__doc__))
        except NotApplicable as reason:
            report[name] = ("not applicable", str(reason))
        except (Broken, OSError, HTTPException, InvalidHandshake) as reason:
            report[name] = ("broken", str(reason) or repr(reason))
    return report


def place(name: str) -> str:
    """The line of this repository that the check is about; "" where there is none."""
    file, beginning = PLACES.get(name, ("", ""))
    path = Path(__file__).parent.parent / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, text in enumerate(lines, 1):
        if text.strip().startswith(beginning):
            return f"{file}:{number}: {text.strip()}"
    return ""


def main() -> None:
    """The command line."""
    site = Site(" ".join(sys.argv[1:]))
    try:
        site.ask("/")
    except ssl.SSLCertVerificationError as error:
        settings.refuse("URL", site.url, f"trusted ({error.verify_message}), or set CA=FILE or INSECURE=1")
    except (OSError, HTTPException) as error:
        settings.refuse("URL", site.url, f"where a server answers ({error or repr(error)})")
    report = examine(site)
    for name, (result, found) in report.items():
        print(f"{result:<14}  {name}: {found}")
        if result == "broken" and (line := place(name)):
            print(f"{'':<14}  change {line}")
    sys.exit(any(result == "broken" for result, _ in report.values()))


if __name__ == "__main__":
    main()
