"""The service contract for any WSGI application: probes, trusted peers, request ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from serving import health, peers

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_FORWARDED = tuple(f"HTTP_{name.upper().replace('-', '_')}" for name in peers.FORWARDED)


class Service:
    """Wrap `app`; `checks` maps a dependency's name to a function that raises when it is away."""

    def __init__(self, app: WSGIApplication, checks: Mapping[str, Callable[[], Any]] | None = None):
        self.app = app
        self.checks = health.Checks(checks or {})
        self.trusted = peers.trusted()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a probe, or let the application answer."""
        # Before the application: a probe's Host header is an address that it may refuse.
        if environ["PATH_INFO"] in health.PATHS and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self.probe(environ, start_response)
        identity = self.identify(environ)
        environ["HTTP_X_REQUEST_ID"] = identity
        peers.request_id.set(identity)

        def respond(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, ("X-Request-ID", identity)], *error)

        # Returned as it is: a wrapper would hide wsgi.file_wrapper and end sendfile.
        return self.app(environ, respond)

    def identify(self, environ: WSGIEnvironment) -> str:
        """Correct address and scheme in place from a trusted peer's headers; the request's id."""
        peer = environ.get("REMOTE_ADDR", "")
        if peer not in self.trusted:
            for name in _FORWARDED:
                environ.pop(name, None)
            return peers.new_request_id(None)
        if forwarded_for := environ.get("HTTP_X_FORWARDED_FOR"):
            environ["REMOTE_ADDR"] = self.trusted.client(peer, forwarded_for)
        if (scheme := environ.get("HTTP_X_FORWARDED_PROTO")) in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        return peers.new_request_id(environ.get("HTTP_X_REQUEST_ID"))

    def probe(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer /livez or /readyz."""
        path = environ["PATH_INFO"]
        failures = self.checks.failures() if path == health.READY else {}
        status, headers, body = health.answer(path, failures)
        start_response("200 OK" if status == 200 else "503 Service Unavailable", headers)
        return [body]


def service(application: str) -> Service:
    """Wrap what Gunicorn finds by this name, untouched: `gunicorn "serving.wsgi:service('shop.wsgi')"`."""
    from gunicorn.util import import_app

    return Service(import_app(application))
