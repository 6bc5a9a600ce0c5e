"""What the last lines of gunicorn.conf.py take over: settings that replace those above, and hooks.

https://docs.gunicorn.org/en/stable/settings.html
"""

import contextlib
import gc
import mmap
import os
import select
import shlex
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import gunicorn.http.wsgi
from gunicorn.instrument.statsd import Statsd

from serving import logs, peers, routes, settings, sizing
from serving.gunicorn import internals
from serving.metrics import parent

__all__ = [
    "accesslog",
    "child_exit",
    "forwarded_allow_ips",
    "graceful_timeout",
    "logconfig_json",
    "logger_class",
    "on_starting",
    "post_fork",
    "post_request",
    "pre_fork",
    "pre_request",
    "preload_app",
    "secure_scheme_headers",
    "when_ready",
    "worker_class",
    "worker_exit",
    "workers",
]

# Seconds after which a rest of a body that the application did not read is given up.
UNREAD_BODY_SECONDS = 1
# Bytes of a body that no framework writes to a temporary file; Werkzeug has the smallest limit.
SMALL_BODY = 500 * 1024

# The address is gunicorn.conf.py's; here its port is checked.
port = settings.integer("PORT", 8000, minimum=0, maximum=65535)
size = sizing.workers()
workers = size.workers

# macOS has no epoll: for development there, the stock worker.
worker_class = "serving.gunicorn.worker.Worker" if hasattr(select, "epoll") else "gthread"

flags = [*sys.argv, *shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))]
preload_app = settings.flag("PRELOAD", default=True) and "--reload" not in flags

# The proxy gives up after REQUEST_TIMEOUT seconds; what it still waits for is finished before.
graceful_timeout = settings.request_timeout() + 5

# None: serving/wsgi.py and serving/asgi.py apply FORWARDED_ALLOW_IPS, which may contain host names.
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}

# By this file's place, not by the working directory: --chdir may change that.
logconfig_json = str(Path(__file__).parent.parent / "logging.json")
accesslog = None

# Before the application is loaded.
exporting = parent.start()


class Logger(Statsd):  # type: ignore[misc]  # Gunicorn has no types
    """Gunicorn's logger, with the access line of serving/logs.py: cheaper, and none for probes.

    It sends Gunicorn's metrics if `statsd_host` is set.
    """

    @property
    def access_log_enabled(self) -> bool:
        """Off under `asgi`, where serving/asgi.py writes the line."""
        return bool(self.cfg.worker_class_str != "asgi")

    def warning(self, msg: str, *args: Any, **options: Any) -> None:
        """Log without query strings: an invalid request's line may contain one."""
        super().warning(logs.without_queries(str(msg)), *args, **options)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Write one line, also for what Gunicorn answers itself.

        A response that ends before its headers were sent is replaced by an error page, which is
        logged then.
        """
        failure = sys.exception()
        failed = isinstance(failure, Exception) and not isinstance(failure, OSError)
        unsent = type(resp) is gunicorn.http.wsgi.Response and not resp.headers_sent
        if failed and unsent and not internals.answering_error.get():
            return
        path = environ.get("PATH_INFO") or getattr(req, "path", None) or "-"
        if logs.JSON:
            # WSGI has the bytes of the path as characters (PEP 3333); some frameworks replace them.
            with contextlib.suppress(UnicodeError):
                path = path.encode("latin-1").decode()
        # The kernel sends a file (sendfile) without counting.
        size = resp.sent
        if type(resp) is gunicorn.http.wsgi.Response and not (size or failure):
            bodiless = environ.get("REQUEST_METHOD") == "HEAD" or resp.status_code in (204, 304)
            size = 0 if bodiless else resp.response_length or 0
        logs.access(
            environ.get("REMOTE_ADDR") or "-",
            environ.get("REQUEST_METHOD") or "-",
            path,
            environ.get("QUERY_STRING") or "",
            str(resp.status or "-").split()[0],
            size,
            request_time.total_seconds(),
            routes.current.get(),
        )
        if self.cfg.statsd_host:
            self.timer("gunicorn.request.duration", request_time.total_seconds() * 1000)
            self.increment("gunicorn.requests", 1)
            self.increment(f"gunicorn.request.status.{str(resp.status).split()[0]}", 1)


logger_class = Logger


def on_starting(server: Any) -> None:
    """Check what can be checked before the server listens, and log how many workers start and why."""
    count = server.cfg.workers
    available = sizing.limits()
    reason = size.reason if count == workers else "command line"
    name = "WEB_CONCURRENCY" if reason == "WEB_CONCURRENCY" else "--workers"
    sizing.check(name, count, server.cfg.threads, available)
    check_flags(server.cfg)
    # A master that was executed again (SIGUSR2), or one that systemd started, has its socket already.
    inherited = {"GUNICORN_PID", "LISTEN_FDS"} & os.environ.keys()
    host = settings.text("HOST", "0.0.0.0" if settings.text("PORT") else "127.0.0.1")  # noqa: S104
    if server.cfg.address == [(host, port)] and not inherited and not server.cfg.reuse_port:
        settings.require_free(host, port)
    # SIGUSR2 executes this again: `python -m serving.gunicorn` as a module, not its file.
    internals.require(server, "START_CTX")
    server.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]
    internals.drain_on_sigterm(server)
    internals.spawn_without_losing_signals(server)
    internals.identify_errors()
    if exporting:
        internals.call_once_a_second(server, exporting.keep_exporter)
        internals.keep_exit_statuses(server)
    server.log.info("workers=%d (%s)", count, reason)


def check_flags(cfg: Any) -> None:
    """Raise SettingError for numbers that Gunicorn accepts and cannot serve with."""
    for name in ("threads", "worker_connections"):
        if (value := getattr(cfg, name)) < 1:
            settings.refuse(f"--{name.replace('_', '-')}", value, "a whole number of at least 1")
    for address in cfg.address:
        if isinstance(address, tuple) and address[1] > 65535:
            settings.refuse("--bind", ":".join(map(str, address)), "an address whose port is at most 65535")


def when_ready(server: Any) -> None:
    """Prepare what the workers will share; they are forked after this hook.

    No connection, and a heap that their garbage collectors do not write to.
    """
    if server.cfg.preload_app:
        internals.refuse_shared_connections()
        gc.collect()
        gc.freeze()
    if exporting:
        exporting.start_exporter(server.LISTENERS)


def pre_fork(server: Any, worker: Any) -> None:
    """Choose the new worker's place in the metrics."""
    if exporting:
        worker.slot = exporting.take_slot()
        # Shared with the worker, which says here that it ends because of max_requests.
        worker.recycled = mmap.mmap(-1, 1)


def post_fork(server: Any, worker: Any) -> None:
    """Let a signal end a worker that has not booted yet.

    Until then it has the arbiter's handlers, which would do nothing: a stop would wait for the
    graceful timeout.
    """
    for number in internals.STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, internals.STOP_SIGNALS)
    if exporting:
        exporting.instruments.begin_worker(worker.slot)


def worker_exit(server: Any, worker: Any) -> None:
    """In the worker: write the last observations, and whether it has served its number of requests."""
    if exporting:
        exporting.instruments.write()
        worker.recycled[0] = worker.nr >= worker.max_requests


def child_exit(server: Any, worker: Any) -> None:
    """In the arbiter, however a worker has ended: free its place in the metrics."""
    if exporting:
        cause = parent.cause_of(internals.exit_statuses.get(worker.pid))
        if worker.aborted:
            cause = "timeout"
        elif cause == "exit" and worker.recycled[0]:
            cause = "recycled"
        exporting.free_slot(worker.slot, cause)


def pre_request(worker: Any, req: Any) -> None:
    """Forget the request that this thread served before."""
    peers.request_id.set("-")
    peers.trace_id.set("")
    routes.current.set("")


def post_request(worker: Any, req: Any, environ: dict[str, Any], resp: Any) -> None:
    """Leave neither a rest of the request's body behind nor its temporary files."""
    # None under `asgi`, which reads the rest itself.
    client = environ.get("gunicorn.socket") if environ else None
    if client is None or not (environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ):
        return
    read_unread_body(client, req.body)
    failed = not str(resp.status).startswith(("1", "2", "3"))
    if failed and int(environ.get("CONTENT_LENGTH") or 0) > SMALL_BODY:
        # Where the application could not write an upload, for example because /tmp is full, its
        # exception and the half file refer to each other: the file stays until a collection.
        gc.collect()


def read_unread_body(client: Any, body: Any) -> None:
    """Read what the application left of a body, up to 1 MiB.

    Otherwise closing would reset the connection, and the client might not see the response:
    Gunicorn itself reads no more than 64 KiB.
    """
    deadline = time.monotonic() + UNREAD_BODY_SECONDS
    # The client or the worker may have closed the connection, and the body may be malformed.
    with contextlib.suppress(Exception):
        client.settimeout(UNREAD_BODY_SECONDS)
        for _ in range(16):
            if not body.read(64 * 1024) or time.monotonic() > deadline:
                break
        client.settimeout(None)
