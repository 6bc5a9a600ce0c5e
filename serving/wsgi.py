"""The service contract for any WSGI application: probes, trusted peers, request ids."""

from __future__ import annotations

import json
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, NoReturn

from serving import health, logs, metrics, peers, routes, settings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_FORWARDED = tuple(f"HTTP_{name.upper().replace('-', '_')}" for name in peers.FORWARDED)


class ApplicationError(Exception):
    """What Gunicorn gets instead of an OSError or a SystemExit that leaves the application.

    It would take the first for an error of the client's connection and close that without an
    answer; a refused connection to another service is an OSError. The second would end the worker.
    """


class Service:
    """Wrap `app`; `checks` maps a dependency's name to a function that raises when it is away."""

    def __init__(self, app: WSGIApplication, checks: Mapping[str, Callable[[], Any]] | None = None):
        self.app = app
        self.checks = health.Checks(checks or {})
        self.trusted = peers.trusted()
        self.metrics = metrics.load()
        self.mounts = frozenset(routes.mounts(app))
        self.max_body = settings.size("MAX_BODY", 1024 * 1024)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a probe, or let the application answer."""
        # Before the application: a probe's Host header is an address that it may refuse.
        if environ["PATH_INFO"] in health.PATHS:
            return self.probe(environ, start_response)
        identity = self.identify(environ)
        environ["HTTP_X_REQUEST_ID"] = identity
        peers.request_id.set(identity)
        peers.trace_id.set(peers.trace_id_for(environ.get("HTTP_TRACEPARENT")))
        routes.current.set("")
        script = environ.get("SCRIPT_NAME", "")
        measured = self.metrics.Request(environ["REQUEST_METHOD"]) if self.metrics else None

        def respond(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            if measured or logs.JSON:
                routes.current.set(routes.of_environ(environ, self.mounts, script))
            if measured:
                measured.respond(status[:3], routes.current.get())
            return start_response(status, [*headers, ("X-Request-ID", identity)], *error)

        if not measured:
            return self.answer(environ, respond)
        try:
            return self.answer(environ, respond, measured.end)
        except BaseException:
            measured.end("500")
            raise

    def answer(
        self, environ: WSGIEnvironment, respond: StartResponse, ended: Callable[[], None] | None = None
    ) -> Iterable[bytes]:
        """Let the application answer, in a body whose errors are for the server.

        `ended` is called when the server closes the body.
        """
        in_chunks = "HTTP_TRANSFER_ENCODING" in environ
        if in_chunks and (refusal := self.take_whole_body(environ)):
            code, _, title = refusal.partition(" ")
            document = json.dumps({"title": title, "status": int(code)}).encode()
            headers = [("Content-Type", "application/problem+json"), ("Content-Length", str(len(document)))]
            respond(refusal, headers)
            return Body([document], None, ended)
        received = environ["wsgi.input"] if in_chunks else None
        try:
            body = self.app(environ, respond)
        except (OSError, SystemExit) as error:
            translate(error)
        # A file is returned as it is: the server sends it without reading it (sendfile).
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper) and not received:
            return at_close(body, ended) if ended else body
        return Body(body, received, ended)

    def take_whole_body(self, environ: WSGIEnvironment) -> str:
        """Give a body in chunks its length; the status of a refusal if it is too long or malformed.

        WSGI knows only Content-Length (PEP 3333). Without it some frameworks take the body for empty,
        and others cut it off at their limit.
        """
        spool = tempfile.SpooledTemporaryFile(max_size=1024 * 1024)  # noqa: SIM115  the request's
        size = 0
        try:
            while chunk := environ["wsgi.input"].read(64 * 1024):
                size += len(chunk)
                if size > self.max_body:
                    return "413 Request Entity Too Large"
                spool.write(chunk)
        except OSError as error:
            if raised_by_server(error):
                return "400 Bad Request"  # malformed chunks, or the client has left
            translate(error)  # the temporary file cannot be written
        spool.seek(0)
        environ["wsgi.input"] = spool
        environ["CONTENT_LENGTH"] = str(size)
        del environ["HTTP_TRANSFER_ENCODING"]
        return ""

    def identify(self, environ: WSGIEnvironment) -> str:
        """Correct address and scheme in place from a trusted peer's headers; the request's id."""
        peer = environ.get("REMOTE_ADDR", "")
        forwarded_for = environ.get("HTTP_X_FORWARDED_FOR", "")
        if peer not in self.trusted and not (forwarded_for and self.trusted.after_lookup(peer)):
            for name in _FORWARDED:
                environ.pop(name, None)
            environ["REMOTE_ADDR"] = peers.plain(peer)
            return peers.request_id_for(None)
        peer = peers.plain(peer)
        environ["REMOTE_ADDR"] = self.trusted.client(peer, forwarded_for) if forwarded_for else peer
        if (scheme := environ.get("HTTP_X_FORWARDED_PROTO")) in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        if self.metrics and (sent := environ.get("HTTP_X_REQUEST_START")):
            self.metrics.queued(sent)
        return peers.request_id_for(environ.get("HTTP_X_REQUEST_ID"))

    def probe(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer /livez or /readyz."""
        if environ["REQUEST_METHOD"] in health.METHODS:
            path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
            failures = self.checks.failures() if path == health.READY else {}
            status, headers, body = health.answer(path, failures, query)
        else:
            status, headers, body = health.not_allowed()
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]


class Body:
    """A response's body whose OSError or SystemExit is an ApplicationError."""

    def __init__(
        self,
        body: Iterable[bytes],
        received: IO[bytes] | None = None,
        ended: Callable[[], None] | None = None,
    ) -> None:
        """`received` is the request's temporary file; to wait for the collector would fill /tmp."""
        self._body, self._received, self._ended = body, received, ended
        self._chunks = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except (OSError, SystemExit) as error:
            translate(error)

    def close(self) -> None:
        """Close the application's body, and the request's."""
        try:
            if close := getattr(self._body, "close", None):
                close()
        finally:
            if self._received:
                self._received.close()
            if self._ended:
                self._ended()


def at_close(body: Any, function: Callable[[], None]) -> Iterable[bytes]:
    """Call `function` when the server closes the file that it sends instead of a body."""
    close = getattr(body, "close", None)

    def close_and_call() -> None:
        try:
            if close:
                close()
        finally:
            function()

    body.close = close_and_call
    return body  # type: ignore[no-any-return]


def translate(error: OSError | SystemExit) -> NoReturn:
    """Raise an ApplicationError, unless the error is the server's own."""
    # In the main thread, a sync worker that timed out is ended by a SystemExit.
    ends_worker = isinstance(error, SystemExit) and threading.current_thread() is threading.main_thread()
    if ends_worker or raised_by_server(error):
        raise error
    raise ApplicationError(f"{type(error).__name__} left the application") from error


def raised_by_server(error: BaseException | None) -> bool:
    """Whether the error began where Gunicorn reads the request's body: the client is gone."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__", "").startswith("gunicorn."):
                return True
        error = error.__cause__ or error.__context__
    return False


def service(application: str) -> Service:
    """Wrap what Gunicorn finds by this name, untouched: `gunicorn "serving.wsgi:service('shop.wsgi')"`."""
    from gunicorn.util import import_app

    return Service(import_app(application))
