"""Gunicorn's `gthread` worker without two of its gaps (27, gunicorn/workers/gthread.py).

- It leaves new connections to the others once it has some. A kept-alive connection stays with
  the worker that accepted it, and one worker often took a whole burst: a proxy's pool of 64
  connections to a page made 210 requests per second on one CPU instead of 600 on two.
- A new connection that is silent holds no thread; the stock one gives it a thread for 5 s.
  Proxies and browsers open connections ahead of need: of 181 bursts of 200 clients through
  a proxy 11 made everybody else wait, up to 9 s; none of 98 since.
"""

from functools import partial
from selectors import EVENT_READ
from socket import socket
from time import monotonic

from gunicorn.workers.gthread import DEFAULT_WORKER_DATA_TIMEOUT, TConn, ThreadWorker

from serving.reload import Reloadable

# Seconds; long enough for an idle worker to wake, too short for a client to notice. Of 64
# connections two workers had 32 each; without it 64 and none, after busy threads alone 17 and 47.
PAUSE = 0.001


class Worker(Reloadable, ThreadWorker):  # type: ignore[misc]  # Gunicorn has no types
    """A `gthread` worker whose threads are for requests: it accepts by them, and waits without them."""

    resume = 0.0

    def accept(self, listener: socket) -> None:
        """Accept one connection, then pause when there are as many as threads, at work or silent."""
        super().accept(listener)
        if self.nr_conns >= self.cfg.threads:
            self.set_accept_enabled(False)
            self.resume = monotonic() + PAUSE

    def enqueue_req(self, conn: TConn) -> None:
        """Run a request on a thread, or wait without one for a new connection's first byte."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.sock.setblocking(False)
        # Without keep-alive, as under `make dev`, a first request still gets its time.
        conn.timeout = monotonic() + max(self.cfg.keepalive, DEFAULT_WORKER_DATA_TIMEOUT)
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _cap_keepalive(self, deadline: float) -> None:
        """At a stop: the silent ones are waited for no longer than the kept-alive ones."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called once per round: starts to accept again when the pause is over."""
        if not enabled or monotonic() >= self.resume:
            self.resume = 0.0
            super().set_accept_enabled(enabled)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """A paused worker waits no longer than the pause."""
        super().wait_for_and_dispatch_events(min(timeout, PAUSE) if self.resume else timeout)
