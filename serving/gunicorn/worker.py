"""Gunicorn's `gthread` worker without some of its gaps (27.0, gunicorn/workers/gthread.py).

- It accepts no more connections at a time than it has threads, so that a burst is shared: a
  connection that is kept open stays with the worker that accepted it, and one worker often took
  all of a proxy's connections.
- While all its threads are stuck, it leaves new connections to workers that have a free one.
- A new connection that is silent holds no thread; the stock worker gives it one for 5 s. Proxies
  and browsers open connections before they need them.
- Each probe has a thread of its own, so that /livez answers while all others wait for a dependency.
- When no more files can be opened, it waits instead of ending.
- SIGQUIT stops it between two events. The stock worker raises an exception wherever it is at that
  moment; while it starts a thread, that is a deadlock until the arbiter kills it.
- SIGTERM ends it immediately while it loads the application.
"""

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from select import select
from selectors import EVENT_READ
from signal import SIGQUIT
from socket import MSG_DONTWAIT, MSG_PEEK, socket
from time import monotonic
from typing import Any

from gunicorn.workers import gthread

from serving import health, metrics
from serving.gunicorn import internals
from serving.gunicorn.reload import Reloadable

# Seconds without accepting; long enough for an idle worker to wake, too short for a client to notice.
PAUSE = 0.001

# Seconds without accepting when no more files can be opened, and seconds between two log lines.
FULL_PAUSE, FULL_LOGGED = 1.0, 60.0
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

# Seconds without a finished request after which the threads count as stuck, and seconds between two
# looks at the backlog from then on.
STUCK, STUCK_PAUSE = 0.1, 0.25

# Seconds between two writes to the metrics.
SHOW = 0.1

# What a probe's first line starts with, and its path. Its request is short, and arrives as a whole.
PROBES = {
    f"{method} {target} ".encode(): target.partition("?")[0]
    for method in ("GET", "HEAD")
    for target in (*health.PATHS, f"{health.READY}?{health.ONCE}")
}
PROBE_BYTES = 4096

internals.require(gthread, "DEFAULT_WORKER_DATA_TIMEOUT", "TConn", "ThreadWorker")
internals.require(
    gthread.ThreadWorker,
    "_cap_keepalive",
    "accept",
    "enqueue_req",
    "finish_request",
    "handle",
    "handle_exit",
    "handle_quit",
    "init_process",
    "on_pending_socket_readable",
    "set_accept_enabled",
    "wait_for_and_dispatch_events",
)


class Worker(Reloadable, gthread.ThreadWorker):  # type: ignore[misc]  # Gunicorn has no types
    """A `gthread` worker that accepts at most one connection per free thread.

    It needs no thread for an idle connection.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        internals.require(self, "method_queue", "nr_conns", "pending_conns", "poller", "tpool", "_accepting")
        self.resume = 0.0
        self.busy, self.finished, self.waiting = 0, 0.0, False
        self.full_logged = float("-inf")
        self.quitting = False
        self.metrics = metrics.load()
        self.shown = 0.0

    def init_process(self) -> None:
        """Make a thread for each probe; the parent class never returns from here.

        Two threads, because /readyz may wait for a dependency.
        """
        if self.metrics:
            self.metrics.threads.set(self.cfg.threads)
            self.metrics.collect()
        self.probe_pools = {path: ThreadPoolExecutor(1, thread_name_prefix="probe") for path in health.PATHS}
        super().init_process()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """On SIGTERM, stop gracefully; while the application is loaded, there is nothing to finish."""
        if not self.booted:
            os._exit(0)
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """On SIGQUIT and SIGINT, let the main loop stop: it may hold a lock or start a thread now."""
        if not self.booted:
            super().handle_quit(sig, frame)
        self.quitting = True
        if self.alive:  # otherwise the queue may be closed
            self.method_queue.defer(lambda: None)

    def accept(self, listener: socket) -> None:
        """Accept one connection, then pause when there are as many as threads, busy or silent."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.pause(FULL_PAUSE)
            if monotonic() - self.full_logged > FULL_LOGGED:
                self.full_logged = monotonic()
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                self.log.error(  # noqa: TRY400  one line, without a traceback
                    "New connections must wait: %s. This process may open %d files (ulimit -n)",
                    error.strerror,
                    limit,
                )
            return
        if self.nr_conns >= self.cfg.threads:
            self.pause(PAUSE)

    def pause(self, seconds: float) -> None:
        """Do not accept for a while."""
        self.set_accept_enabled(False)
        self.resume = monotonic() + seconds

    def enqueue_req(self, conn: Any) -> None:
        """Run a request on a thread, or wait without one for a new connection's first byte.

        To look at every request would slow all of them down, because the main thread gives away the
        interpreter's lock for it. It looks at the first one of a connection, at those that follow a
        probe, and at all while the threads are stuck.
        """
        if not conn.initialized and not conn.data_ready:
            conn.sock.setblocking(False)
            # Without keep-alive, as under `make dev`, a first request still gets its time.
            conn.timeout = monotonic() + max(self.cfg.keepalive, gthread.DEFAULT_WORKER_DATA_TIMEOUT)
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, EVENT_READ, partial(self.on_pending_socket_readable, conn))
            return
        conn.probe = self.probed_path(conn.sock) if getattr(conn, "probe", True) or self.is_stuck() else ""
        if conn.probe:
            future = self.probe_pools[conn.probe].submit(self.handle, conn)
            future.add_done_callback(partial(self.method_queue.defer, self.finish_request, conn))
        else:
            self.busy += 1
            self.show_busy()
            super().enqueue_req(conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Count it, and let the parent class close or keep the connection."""
        if not conn.probe:
            if self.is_stuck():
                self.resume = min(self.resume, monotonic() + PAUSE)
                self.waiting = False
            self.busy -= 1
            self.finished = monotonic()
            self.show_busy()
        super().finish_request(conn, fs)

    def show_busy(self) -> None:
        """Write the metrics, ten times a second at most under load: how many threads are busy, and the rest.

        The first request of an idle worker is shown immediately: it may hold the interpreter's lock.
        """
        if self.metrics and (self.busy == 1 or monotonic() - self.shown > SHOW):
            self.shown = monotonic()
            self.metrics.threads_busy.set(min(self.busy, self.cfg.threads))
            self.metrics.waiting.set(max(0, self.busy - self.cfg.threads))
            self.metrics.write()

    def is_stuck(self) -> bool:
        """Whether all threads have been busy for some time."""
        return bool(self.busy >= self.cfg.threads and monotonic() - self.finished > STUCK)

    def probed_path(self, client: socket) -> str:
        """The probe that waits, if it is complete, so that it cannot hold up the next one; or ""."""
        if self.cfg.is_ssl:
            return ""
        try:
            waiting = client.recv(PROBE_BYTES, MSG_PEEK | MSG_DONTWAIT)
        except OSError:
            return ""
        headers = waiting.lower()
        complete = headers.endswith(b"\r\n\r\n")
        if not complete or b"\ncontent-length" in headers or b"\ntransfer-encoding" in headers:
            return ""
        return next((path for start, path in PROBES.items() if waiting.startswith(start)), "")

    def _cap_keepalive(self, deadline: float) -> None:
        """At a stop, wait for silent connections no longer than for kept-alive ones."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called in each round of the main loop: accepts again when the pause is over."""
        if not enabled or monotonic() >= self.resume:
            super().set_accept_enabled(enabled)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait no longer than the pause lasts; stop after SIGQUIT."""
        self.show_busy()
        if self.quitting:
            super().handle_quit(SIGQUIT, None)
        if self._accepting and self.is_stuck():
            # When connections wait at two looks, all other workers are stuck as well. Then accept,
            # because one of them may be a probe.
            waited, self.waiting = self.waiting, bool(select(self.sockets, [], [], 0)[0])
            if not (waited and self.waiting):
                self.pause(STUCK_PAUSE)
        if self.busy >= self.cfg.threads:
            timeout = min(timeout, STUCK)
        pause = self.resume - monotonic()
        super().wait_for_and_dispatch_events(min(timeout, pause) if pause > 0 else timeout)
