"""`python -m tests.smoke URL`: what every deployment of this kind owes, asked from outside.

CA=FILE trusts an authority of your own, INSECURE=1 any certificate; WS=/path names the WebSocket
(/ws). The exit code is 1 when a promise is broken.
"""

import re
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from serving import health, settings
from tests.site import Site

TRACE = re.compile(r"Traceback \(most recent|DEBUG = True|Werkzeug Debugger|File (&quot;|\")/")
VERSION = re.compile(r"\b(apache|caddy|gunicorn|nginx|python|uvicorn|werkzeug)/\d", re.IGNORECASE)
HASHED = re.compile(r"""(?:href|src)=["']([^"'?]*[.-][0-9a-f]{8,}\.(?:css|js|svg|png|woff2))["'?]""")
NAME, ADDRESS, IDENTITY = "forged.example", "203.0.113.7", "forged-request-id"
UNKNOWN = "/no/such/address"


class Broken(Exception):  # noqa: N818
    """What is wrong."""


class NotApplicable(Exception):  # noqa: N818
    """Why nobody can tell."""


Check = Callable[[Site], None]
PROMISES: dict[str, Check] = {}
# Where this repository keeps a promise: a file, and how the line begins.
PLACES = {
    "health": ("serving/health.py", "PATHS = "),
    "request id": ("serving/peers.py", "def new_request_id"),
    # copier: if gunicorn
    "keep-alive": ("gunicorn.conf.py", "worker_class = "),
    # copier: endif
    # copier: if "django" in stacks
    "static files": ("wsgi_app/django_site/settings.py", '"whitenoise.middleware'),
    "errors": ("wsgi_app/django_site/settings.py", "DEBUG = "),
    # copier: endif
    # copier: if "fastapi" in stacks
    "WebSocket": ("uvicorn.json", '"ws_max_size"'),
    # copier: endif
    # copier: if edge
    "server's name": ("deploy/edge/Caddyfile", "header -Server"),
    "security headers": ("deploy/edge/Caddyfile", "header ?X-Content-Type-Options"),
    "forged headers": ("docker-compose.yml", "FORWARDED_ALLOW_IPS: "),
    "HTTP/2": ("deploy/edge/Caddyfile", "https_port"),
    # copier: endif
}


def promise(name: str) -> Callable[[Check], Check]:
    """Register a check, which raises Broken or NotApplicable."""
    return lambda check: PROMISES.setdefault(name, check)


@promise("health")
def answers_probes(site: Site) -> None:
    """/livez and /readyz answer 200, and nobody keeps that."""
    for path in health.PATHS:
        answer = site.ask(path)
        if answer.status != 200 or "no-store" not in answer.headers.get("Cache-Control", ""):
            raise Broken(f"{path}: {answer.status}, Cache-Control: {answer.headers.get('Cache-Control')}")


def hashed(site: Site) -> list[str]:
    """The files of this site with a hash in their name that its page links."""
    links = {urljoin(site.url + "/", link) for link in HASHED.findall(site.page.text)}
    found = [link.removeprefix(site.url) for link in links if link.startswith(site.url + "/")]
    if not site.page.is_page or not found:
        raise NotApplicable("no page that links files with a hash in their name")
    return found


@promise("static files")
def keeps_and_packs(site: Site) -> None:
    """A file with a hash in its name is kept for a year, and text comes compressed."""
    for path in hashed(site):
        answer, packed = site.ask(path), site.ask(path, headers={"Accept-Encoding": "gzip"})
        kept = re.search(r"max-age=(\d+)", control := answer.headers.get("Cache-Control", "nothing"))
        if not kept or int(kept[1]) < 31_536_000:
            raise Broken(f"{path}: Cache-Control: {control}")
        text = path.endswith(("css", "js")) and len(answer.body) > 500
        if text and packed.headers.get("Content-Encoding") != "gzip":
            raise Broken(f"{path}: not compressed for who takes gzip")


@promise("errors")
def errs_politely(site: Site) -> None:
    """An unknown address gets a 404 and TRACE no echo: short, without a trace or a version."""
    unknown, refused = site.follow(UNKNOWN), site.ask("/", "TRACE", {"X-Echo": NAME})
    if unknown.status != 404 or NAME in refused.text or refused.status == 500:
        raise Broken(f"{UNKNOWN}: {unknown.status}; TRACE: {refused.status} {refused.text[:80]!r}")
    for answer in (unknown, refused):
        if answer.status >= 400 and len(answer.body) > site.largest:
            raise Broken(f"{answer.status}: {len(answer.body)} bytes, more than {site.largest}")
        if found := TRACE.search(answer.text) or VERSION.search(answer.text):
            raise Broken(f"{answer.status}: shows {found[0]!r}")


@promise("server's name")
def tells_no_version(site: Site) -> None:
    """Nobody is told what to attack."""
    server, powered = (site.page.headers.get(name, "") for name in ("Server", "X-Powered-By"))
    if re.search(r"/\d", server) or powered:
        raise Broken(f"Server: {server}, X-Powered-By: {powered}")


@promise("security headers")
def protects(site: Site) -> None:
    """A page can not be framed or sniffed and tells nobody its address; a public name keeps to TLS."""
    headers = site.page.headers
    if not site.tls and not site.page.is_page:
        raise NotApplicable("no page, and no TLS")
    needed = ["X-Content-Type-Options", "Referrer-Policy"]
    needed += ["Strict-Transport-Security"] if site.tls and not site.local else []
    if "frame-ancestors" not in headers.get("Content-Security-Policy", ""):
        needed.append("X-Frame-Options")
    if lacking := [name for name in needed if name not in headers]:
        raise Broken(f"no {', '.join(lacking)}")
    cookies = headers.get_all("Set-Cookie", []) if site.tls else []
    if exposed := [cookie for cookie in cookies if "; secure" not in cookie.lower()]:
        raise Broken(f"a cookie that is not Secure: {exposed[0].partition('=')[0]}")


@promise("forged headers")
def believes_nobody(site: Site) -> None:
    """Only a trusted proxy names a client, a host, a scheme or a request id."""
    scheme = "http" if site.tls else "https"
    forged = {"Forwarded": f"for={ADDRESS};host={NAME};proto={scheme}", "X-Forwarded-For": ADDRESS}
    forged |= {"X-Forwarded-Host": NAME, "X-Forwarded-Prefix": f"/{NAME}", "X-Forwarded-Proto": scheme}
    forged |= {"X-Real-IP": ADDRESS, "X-Request-ID": IDENTITY}
    for path in ("/", UNKNOWN):
        honest, other = site.ask(path), site.ask(path, headers=forged)
        if site.local and not site.tls and other.headers.get("X-Request-ID") == IDENTITY:
            raise NotApplicable("this machine is a proxy that it trusts")
        told = f"{other.headers}{other.text}"
        if found := [value for value in (ADDRESS, NAME, IDENTITY) if value in told]:
            raise Broken(f"{path}: believes {', '.join(found)}")
        if honest.status != other.status or honest.headers.get("Location") != other.headers.get("Location"):
            raise Broken(f"{path}: believes X-Forwarded-Proto: {other.status} instead of {honest.status}")


@promise("request id")
def identifies(site: Site) -> None:
    """X-Request-ID is returned, well-formed and another one each time."""
    first, second = (site.ask("/").headers.get("X-Request-ID", "") for _ in range(2))
    if not re.fullmatch(r"[\w.-]{8,128}", first) or first == second:
        raise Broken(f"X-Request-ID: {first or 'none'}, then {second or 'none'}")


@promise("WebSocket")
def closes_in_order(site: Site) -> None:
    """A goodbye is answered with 1000, a message without bound with 1009."""
    path = settings.text("WS", "/ws")
    site.context.set_alpn_protocols(["http/1.1"])
    options = {"ssl": site.context, "server_hostname": site.host} if site.tls else {}

    def client() -> Any:
        address = f"ws{site.url.removeprefix('http')}{path}"
        return connect(address, sock=site.connect(), origin=site.url, proxy=None, close_timeout=3, **options)

    try:
        with client() as leaving:
            leaving.close()
    except (InvalidHandshake, ValueError) as error:  # ValueError: it redirects, and a socket is given
        raise NotApplicable(f"{path}: {error}") from error
    with client() as flooding:
        # The head of a binary message, masked, of 2**40 bytes.
        flooding.socket.sendall(b"\x82\xff" + (2**40).to_bytes(8) + bytes(4))
        with suppress(ConnectionClosed, TimeoutError):
            flooding.recv(timeout=3)
        codes = (leaving.close_code, flooding.protocol.close_code)
    if codes != (1000, 1009):
        raise Broken(f"{path}: goodbye {codes[0]}, message without bound {codes[1]}")


@promise("keep-alive")
def keeps_connections(site: Site) -> None:
    """More than one request goes over a connection, also after an error."""
    connection = site.open()
    try:
        for path in ("/", UNKNOWN, "/"):
            site.ask(path, on=connection)
            if connection.sock is None:
                raise Broken(f"closed after {path}")
    finally:
        connection.close()


@promise("HTTP/2")
def speaks_http_2(site: Site) -> None:
    """It is offered in the TLS handshake, and SETTINGS are answered with SETTINGS."""
    if not site.tls:
        raise NotApplicable("no TLS")
    with site.encrypt("h2", "http/1.1") as client:
        if client.selected_alpn_protocol() != "h2":
            raise Broken("not offered")
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        if client.recv(9)[3:4] != b"\4":
            raise Broken("offered, but not spoken")


def examine(site: Site) -> dict[str, tuple[str, str]]:
    """Promise -> kept, broken or not applicable, and what was found."""
    report = {}
    for name, check in PROMISES.items():
        try:
            check(site)
            report[name] = ("kept", str(check.__doc__))
        except NotApplicable as reason:
            report[name] = ("not applicable", str(reason))
        except (Broken, OSError, HTTPException) as reason:
            report[name] = ("broken", str(reason) or repr(reason))
    return report


def place(name: str) -> str:
    """The line of this repository that keeps the promise; "" where a proxy in front has to."""
    if name not in PLACES:
        return ""
    file, line = PLACES[name]
    lines = (Path(__file__).parent.parent / file).read_text(encoding="utf-8").splitlines()
    number = next(number for number, text in enumerate(lines, 1) if text.strip().startswith(line))
    return f"{file}:{number}: {lines[number - 1].strip()}"


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
