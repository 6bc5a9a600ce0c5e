"""Gunicorn settings for a WSGI application; Gunicorn reads this file from the working directory.

Command line flags override GUNICORN_CMD_ARGS, which overrides this file. The file works alone.
Alone, it does not size the workers by the container's limits, check the settings, drain on SIGTERM
or keep probes out of the access log: its last lines add that where the folder serving/ exists.
https://docs.gunicorn.org/en/stable/settings.html
"""

import os
import shlex
import sys

# The address to listen on. A platform that sets PORT expects a server on every interface; so does a
# container, whose image sets both. Otherwise only this machine can connect.
host = os.environ.get("HOST") or ("0.0.0.0" if os.environ.get("PORT") else "127.0.0.1")
port = os.environ.get("PORT") or "8000"
bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

# Threads, because the default sync worker serves one client at a time and is blocked by every
# connection that is slow or kept open.
worker_class = "gthread"

# Processes use the CPUs; threads wait for databases and networks. Fewer threads if requests only
# compute (WORKLOAD=cpu), more if they mostly wait (io). docs/choosing.md has figures.
workload = os.environ.get("WORKLOAD", "").strip().lower()
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
threads = {"cpu": 3, "io": 18}.get(workload, 6)

# Load the application once, before forking: workers share its memory, and an application that
# cannot start stops the container instead of being restarted forever. It must not open connections
# at import, because all workers would share them: PRELOAD=off lets each worker load it.
# Under --reload each worker must load it, or it would go on with the old code.
flags = [*sys.argv, *shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))]
preload_app = os.environ.get("PRELOAD") != "off" and "--reload" not in flags

# The heartbeat is a file that each worker touches; on a slow disk that blocks the worker.
# macOS has no /dev/shm.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# Seconds; a worker without a heartbeat for so long is killed. This does not limit a request's time:
# a slow request in a thread does not stop the heartbeat. Limit request time in the proxy.
timeout = 30

# Seconds that requests in flight get after SIGTERM. Must be less than the time after which the
# engine kills the container (Compose: stop_grace_period).
graceful_timeout = 25

# Bytes of one header. Must be more than the proxy in front lets through (12 KiB in all).
limit_request_field_size = 16 * 1024

# Seconds that an idle connection stays open. Must be more than the proxy's idle timeout for its
# upstreams (nginx: 60), or the proxy sends a request into a connection that is being closed.
keepalive = 75

# Replace each worker after about 10,000 requests, so that a slow memory leak cannot build up. The
# jitter prevents workers from restarting at the same time. Not with an asyncio worker class: it
# drops the connections that a recycled worker holds.
max_requests = 0 if workload == "asyncio" else 10_000
max_requests_jitter = 1_000

# Peers whose X-Forwarded-Proto Gunicorn trusts: the proxy's addresses, or this machine.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS") or "127.0.0.1,::1"

# The control socket needs a writable home directory: on a read-only root each start would log an
# error.
control_socket_disable = True

# Access lines to standard output, errors to standard error.
accesslog = "-"
loglevel = os.environ.get("LOG_LEVEL") or "info"

try:
    # Overrides workers, worker_class, preload_app, graceful_timeout, forwarded headers and logging.
    from serving.gunicorn.configuration import *  # noqa: F403
except ModuleNotFoundError as error:
    if error.name != "serving":
        raise
