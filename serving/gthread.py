"""Gunicorn's `gthread` worker, which leaves new connections to the others while it is busy.

A kept-alive connection stays with the worker that accepted it, and one worker often took a
whole burst: a proxy's pool of 64 connections to a page made 210 requests per second on one
CPU instead of 600 on two. Written for Gunicorn 27 (gunicorn/workers/gthread.py).
"""

from socket import socket
from time import monotonic

from gunicorn.workers.gthread import ThreadWorker

from serving.reload import Reloadable

# Seconds; long enough for an idle worker to wake, too short for a client to notice. With two
# workers 64 connections went 33 to 31; without, 61 to 3 or 64 to none in seven of eight bursts.
PAUSE = 0.001


class Worker(Reloadable, ThreadWorker):  # type: ignore[misc]  # Gunicorn has no types
    """A `gthread` worker that pauses after an accepted connection for which it has no free thread."""

    resume = 0.0

    def accept(self, listener: socket) -> None:
        """Accept one connection, then pause when every thread is taken."""
        super().accept(listener)
        at_work = self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns)
        if at_work >= self.cfg.threads:
            self.set_accept_enabled(False)
            self.resume = monotonic() + PAUSE

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called once per round: starts to accept again when the pause is over."""
        if not enabled or monotonic() >= self.resume:
            self.resume = 0.0
            super().set_accept_enabled(enabled)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """A paused worker waits no longer than the pause."""
        super().wait_for_and_dispatch_events(min(timeout, PAUSE) if self.resume else timeout)
