"""Gunicorn's configuration for a WSGI application; Gunicorn finds it in the working directory.

Precedence: command line > GUNICORN_CMD_ARGS > environment > this file > computed.
Copied alone it still serves; with `serving/` beside it, it also sizes the workers by the
container's limits, checks the settings, and keeps the probes out of the access log.
"""

import contextlib
import gc
import os
import shlex
import sys

import gunicorn.glogging

try:
    from serving import logs, peers, settings, sizing
except ModuleNotFoundError as error:
    if error.name != "serving":
        raise
    settings = None

# Loopback, until someone asks for more: the image sets HOST=0.0.0.0 for itself.
host = os.environ.get("HOST") or "127.0.0.1"
port = (
    settings.integer("PORT", 8000, minimum=0, maximum=65535) if settings else os.environ.get("PORT") or 8000
)
bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

# Threads, not the default sync worker: a sync worker answers one client at a time, and a
# kept-alive or slow connection occupies it whole. Ours shares bursts, and waits without a thread.
worker_class = "serving.gthread.Worker" if settings else "gthread"

# Processes for the CPUs, threads for the waiting on databases and networks: on 2 CPUs, 3 workers
# of 6 threads answered as many waiting requests as 5 of 4 (534 and 551 a second), and more that
# only compute (4,437 and 3,175). With 8 threads the 99th percentile grew, and nothing else.
if settings:
    size = sizing.workers()
    workers, reason = size.workers, size.reason
else:
    workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
    reason = "WEB_CONCURRENCY, else 2: no serving/ beside this file"
threads = 6

# Load the application once, before the fork: workers share its memory, and an application
# that can not start ends the container instead of respawning for ever.
# It must open no database or network socket on import: the workers would share that as well.
# Under --reload each worker loads it again, or it would go on with the old code.
preload_app = "--reload" not in [*sys.argv, *shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))]

# The heartbeat is a file that each worker touches; on a slow disk that blocks the worker.
# macOS has no /dev/shm.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# A worker that gives no heartbeat for 30 s is killed. It is no request timeout for threads:
# the heartbeat goes on while a request is slow. Bound requests in the proxy.
timeout = 30

# On SIGTERM, requests in flight get 25 s; must stay below Compose's stop_grace_period (30 s),
# or the engine kills them first.
graceful_timeout = 25

# Bytes of one header; must exceed what the proxy in front lets through (12 KiB in all).
limit_request_field_size = 16 * 1024

# Seconds an idle connection stays open; must exceed the proxy's idle timeout for upstreams
# (nginx 60 s), or the proxy sends a request into a connection that is just being closed.
keepalive = 75

# A slow leak never grows old: each worker is replaced after some ten thousand requests, and
# the jitter keeps them from going all at once.
# Not with an asyncio worker class: those drop the connections that a recycled worker holds.
max_requests = 0 if os.environ.get("WORKLOAD") == "asyncio" else 10_000
max_requests_jitter = 1_000

# Whose X-Forwarded-Proto counts: with serving/ beside this file nobody's, because it decides
# that itself, by the same variable, and understands host names.
forwarded_allow_ips = "" if settings else os.environ.get("FORWARDED_ALLOW_IPS") or "127.0.0.1,::1"

# The control socket wants a writable home; on a read-only root each start would log an error.
control_socket_disable = True

loglevel = os.environ.get("LOG_LEVEL") or "info"


def on_starting(server):
    """Refuse an occupied port at once, and say how many workers start and why."""
    count = server.cfg.workers
    if settings:
        if not 1 <= count <= sizing.MAXIMUM:
            settings.refuse("--workers", count, f"a whole number from 1 to {sizing.MAXIMUM}")
        # A re-executed master (SIGUSR2) inherits the socket that it would find occupied.
        if server.cfg.settings["bind"].get() == [bind] and "GUNICORN_PID" not in os.environ:
            settings.require_free(host, int(port))
    server.log.info("workers=%d (%s)", count, reason if count == workers else "command line")


def when_ready(server):
    """Freeze the heap that the workers will share, so that their collectors do not copy it."""
    gc.collect()
    gc.freeze()


def post_request(worker, req, environ, resp):
    """Read what the application left of a body, or closing would reset the connection under the answer.

    A third of such answers got lost behind a proxy: Gunicorn itself reads no more than 64 KiB.
    """
    client = environ and environ.get("gunicorn.socket")  # none under asgi, which reads the rest itself
    if client and (environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ):
        client.settimeout(1)
        with contextlib.suppress(Exception):
            for _ in range(16):
                if not req.body.read(64 * 1024):
                    break
        client.settimeout(None)
    if settings:
        # The thread goes back to the pool: what it logs now belongs to no request.
        peers.request_id.set("-")


if settings:
    # By its place, not by the working directory: --chdir may move that.
    logconfig_json = os.path.join(os.path.dirname(settings.__file__), "logging.json")

    class Logger(gunicorn.glogging.Logger):
        """Gunicorn's logger, with an access line at a third of the cost and none for probes."""

        @property
        def access_log_enabled(self):
            """Off under `asgi`, where serving/asgi.py writes the line."""
            return self.cfg.worker_class_str != "asgi"

        def access(self, resp, req, environ, request_time):
            """Write one line through serving/logs.py."""
            path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
            seconds = request_time.total_seconds()
            client, method = environ["REMOTE_ADDR"], environ["REQUEST_METHOD"]
            logs.access(client, method, path, query, resp.status_code, resp.sent, seconds)

    logger_class = Logger
else:
    accesslog = "-"
