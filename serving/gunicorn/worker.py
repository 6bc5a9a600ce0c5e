"""Gunicorn's `gthread` worker whose threads wait for requests themselves (27.0, gunicorn/workers/gthread.py).

In the stock worker the main thread waits for all connections, hands each request to a pool of
threads, and takes the connection back. Each of these steps needs the interpreter's lock, which busy
threads hold: requests wait for it although a thread is free. Here all threads wait for the same set
of connections (epoll), and the kernel gives each request to one of them. The main thread accepts
connections, closes idle ones and tells the arbiter that the worker lives. docs/choosing.md has the
figures.

- It accepts no more connections at a time than it has threads, so that a burst is shared: a
  connection that is kept open stays with the worker that accepted it, and one worker often took
  all of a proxy's connections.
- While all its threads are stuck, it leaves new connections to workers that have a free one.
- A connection that is silent holds no thread; the stock worker gives a new one a thread for 5 s.
  Proxies and browsers open connections before they need them. (With `--certfile`, one that is silent
  after its handshake does hold one, in both.)
- A client that sends requests without waiting for responses waits its turn with each of them.
- Each probe has a thread of its own, so that /livez answers while all others wait for a dependency.
- When no more files can be opened, it waits instead of ending.
- SIGQUIT stops it between two events. The stock worker raises an exception wherever it is at that
  moment; while it starts a thread, that is a deadlock until the arbiter kills it.
- SIGTERM ends it immediately while it loads the application.
"""

import errno
import os
import resource
import select
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from signal import SIGQUIT
from socket import MSG_DONTWAIT, MSG_PEEK, socket
from threading import Thread, get_ident
from time import monotonic
from typing import Any

from gunicorn.workers import gthread

from serving import health, metrics
from serving.gunicorn import internals
from serving.gunicorn.reload import Reloadable

# Seconds without accepting; long enough for an idle worker to wake, too short for a client to notice.
# While all threads are busy, a connection gains little from being accepted: so long for each thread.
PAUSE, BUSY_PAUSE = 0.001, 0.0015

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

# One event for one thread; the thread that has got it asks for the next one.
NEXT_REQUEST = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
# The same where bytes of the next request are here already: as soon as the client takes responses,
# behind the other connections that wait.
BUFFERED = select.EPOLLOUT | select.EPOLLONESHOT

internals.require(gthread, "DEFAULT_WORKER_DATA_TIMEOUT", "STOP_KEEPALIVE_LINGER", "TConn", "ThreadWorker")
internals.require(gthread.TConn, "close", "set_timeout")
internals.require(
    gthread.ThreadWorker,
    "_cap_keepalive",
    "accept",
    "enqueue_req",
    "handle",
    "handle_exit",
    "handle_quit",
    "init_process",
    "murder_keepalived",
    "run",
    "set_accept_enabled",
    "wait_for_and_dispatch_events",
)


class Silent(dict[int, Any]):
    """Descriptor -> a connection that waits for its next request.

    Gunicorn compares its length with the number of connections that may be kept alive. False,
    because Gunicorn takes its own collection for a queue.
    """

    def __bool__(self) -> bool:
        return False


class Worker(Reloadable, gthread.ThreadWorker):  # type: ignore[misc]  # Gunicorn has no types
    """A `gthread` worker whose threads wait for requests themselves."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        internals.require(self, "keepalived_conns", "method_queue", "nr_conns", "poller", "_accepting")
        self.keepalived_conns = Silent()
        # Connections with a request, taken by the main thread while all threads were busy.
        self.taken: deque[Any] = deque()
        # The threads that serve a request now.
        self.busy: set[int] = set()
        # When a request was finished, and when all threads became busy.
        self.finished, self.full = 0.0, float("-inf")
        # Whether the main thread may sleep for a second.
        self.asleep = False
        # Until when nothing is accepted, and whether connections waited at the last look.
        self.resume, self.waiting = 0.0, False
        self.full_logged, self.looked = float("-inf"), 0.0
        self.quitting = False
        # The worker itself, and not a child that the application has forked.
        self.process = 0
        self.metrics = metrics.load()
        # When the metrics were written, and the number of busy threads in them.
        self.shown, self.busy_shown = 0.0, 0

    def init_process(self) -> None:
        """Make a thread for each probe; the parent class never returns from here.

        Two threads, because /readyz may wait for a dependency.
        """
        if self.metrics:
            self.metrics.threads.set(self.cfg.threads)
            self.metrics.collect()
        self.process = os.getpid()
        self.requests, self.backlog = select.epoll(), select.poll()
        for listener in self.sockets:
            self.backlog.register(listener, select.POLLIN)
        self.probe_pools = {path: ThreadPoolExecutor(1, thread_name_prefix="probe") for path in health.PATHS}
        for pool in self.probe_pools.values():
            pool.submit(int)  # starts its thread now, while a failure is an error of the start
        super().init_process()

    def run(self) -> None:
        """Start the threads, then the main loop."""
        for number in range(self.cfg.threads):
            Thread(target=self.serve, name=f"serve-{number}", daemon=True).start()
        super().run()

    # The threads

    def serve(self) -> None:
        """Serve one request after another, of any connection."""
        while True:
            if conn := self.next_connection():
                conn.data_ready = True
                if path := self.probed_path(conn) if conn.probe else "":
                    self.probe_pools[path].submit(self.respond, conn)
                else:
                    conn.probe = False
                    self.work(conn)

    def next_connection(self) -> Any:
        """A connection with a request, or None."""
        with suppress(IndexError):
            return self.taken.popleft()
        for descriptor, _ in self.requests.poll(1, 1):
            # The thread that removes it owns it: the main one closes those that are silent for too long.
            return self.keepalived_conns.pop(descriptor, None)
        return None

    def work(self, conn: Any) -> None:
        """Serve a request, and let the main thread know when all threads are busy."""
        if self.metrics and not self.busy_shown:
            # Immediately: the request may hold the interpreter's lock from here on.
            self.busy_shown = 1
            self.metrics.threads_busy.set(1)
        self.busy.add(get_ident())
        all_busy = len(self.busy) >= self.cfg.threads
        if all_busy:
            self.full = monotonic()
        if self.asleep and (all_busy or self.metrics):
            self.wake()
        try:
            self.respond(conn)
        finally:
            if self.is_stuck():
                self.resume = min(self.resume, monotonic() + PAUSE)
                self.waiting = False
                self.wake()
            self.busy.discard(get_ident())
            self.finished = monotonic()

    def respond(self, conn: Any) -> None:
        """Serve one request; then wait for the next one, or close."""
        keep = False
        try:
            keep = self.handle(conn)
            if keep and os.getpid() == self.process:
                conn.set_timeout()
                self.wait_for_request(conn)
        except BaseException:
            # Nothing may end a thread: it would be missing until the worker is replaced.
            keep = False
            self.log.exception("Connection dropped")
        if os.getpid() != self.process:
            os._exit(0)  # a child that the application has forked: the connections are its parent's
        if not keep:
            # A probe has been read to its end, and must not hold up the next one.
            self.drop(conn, graceful=not conn.probe)

    def wait_for_request(self, conn: Any) -> None:
        """Wait without a thread for the next request of this connection."""
        descriptor = conn.sock.fileno()
        self.keepalived_conns[descriptor] = conn
        if not self.alive:
            conn.timeout = min(conn.timeout, monotonic() + gthread.STOP_KEEPALIVE_LINGER)
        try:
            self.requests.modify(descriptor, BUFFERED if self.is_buffered(conn) else NEXT_REQUEST)
        except (OSError, ValueError):  # the application has closed the socket
            if self.keepalived_conns.pop(descriptor, None):
                self.drop(conn)

    def is_buffered(self, conn: Any) -> bool:
        """Whether bytes of the next request have been read; an empty line is none (RFC 9112, section 2.2)."""
        if not conn.parser or conn.is_http2:
            return False
        if self.cfg.is_ssl and conn.sock.pending():
            return True
        return bool(conn.parser.unreader.buf.getvalue().strip(b"\r\n"))

    def drop(self, conn: Any, graceful: bool = False) -> None:
        """Close a connection and count it no more."""
        self.close(conn, graceful)
        self.method_queue.defer(self.forget)

    def close(self, conn: Any, graceful: bool = False) -> None:
        """Close a connection for which nothing waits."""
        # A process that the application has forked may still have the descriptor.
        with suppress(OSError, ValueError):  # closed already
            self.requests.unregister(conn.sock.fileno())
        with suppress(Exception):
            conn.close(graceful=graceful)

    def wake(self) -> None:
        """Let the main loop run once."""
        self.asleep = False
        self.method_queue.defer(lambda: None)

    def is_stuck(self) -> bool:
        """Whether all threads have been busy for some time."""
        return len(self.busy) >= self.cfg.threads and monotonic() - self.finished > STUCK

    def probed_path(self, conn: Any) -> str:
        """The probe that waits, if it is complete, so that it cannot hold up the next one; or "".

        To look at every request would cost all of them a system call: the threads look at the first
        one of a connection and at those that follow a probe, the main thread while all are stuck.
        """
        if self.cfg.is_ssl or self.is_buffered(conn):
            return ""
        try:
            waiting = conn.sock.recv(PROBE_BYTES, MSG_PEEK | MSG_DONTWAIT)
        except OSError:
            return ""
        headers, end, _ = waiting.lower().partition(b"\r\n\r\n")
        if not end or b"\ncontent-length" in headers or b"\ntransfer-encoding" in headers:
            return ""
        return next((path for start, path in PROBES.items() if waiting.startswith(start)), "")

    # The main thread

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
        """Accept as many connections as there are threads, then pause: the next ones are for others.

        Only one while all threads are stuck: another worker may have a free one sooner.
        """
        known, room = self.nr_conns, self.cfg.threads - self.nr_conns
        most = 1 if self.is_stuck() else room if room > 0 else self.cfg.threads
        try:
            for count in range(1, most + 1):
                super().accept(listener)
                if self.nr_conns < known + count:  # none waits any more
                    break
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
            threads = self.cfg.threads
            self.pause(BUSY_PAUSE * threads if len(self.busy) >= threads else PAUSE)

    def enqueue_req(self, conn: Any) -> None:
        """Wait for a new connection's first request."""
        conn.probe = True
        # Without keep-alive, as under `make dev`, a first request still gets its time.
        conn.timeout = monotonic() + max(self.cfg.keepalive, gthread.DEFAULT_WORKER_DATA_TIMEOUT)
        if self.keepalived_conns.pop(conn.sock.fileno(), None):
            self.forget()  # the application has closed its socket
        self.keepalived_conns[conn.sock.fileno()] = conn
        self.requests.register(conn.sock.fileno(), NEXT_REQUEST)

    def forget(self) -> None:
        """Count a connection that a thread has closed; another one may take its place immediately."""
        self.nr_conns -= 1
        if self.nr_conns < self.cfg.threads:
            self.resume = 0.0

    def murder_keepalived(self, force: bool = False) -> None:
        """Close the connections that have been silent for too long; ten times a second at most."""
        now = monotonic()
        if now - self.looked < STUCK and not force:
            return
        self.looked = now
        for descriptor, conn in [*self.keepalived_conns.items()]:
            if (conn.timeout <= now or force) and self.keepalived_conns.pop(descriptor, None):
                if conn.timeout <= now or force:
                    self.close(conn)
                    self.forget()
                else:  # a thread has served a request meanwhile
                    self.wait_for_request(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """At a stop, wait for silent connections no longer than until then."""
        for conn in [*self.keepalived_conns.values()]:
            conn.timeout = min(conn.timeout, deadline)

    def pause(self, seconds: float) -> None:
        """Do not accept for a while."""
        self.set_accept_enabled(False)
        self.resume = monotonic() + seconds

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called in each round of the main loop: accepts again when the pause is over."""
        if not enabled or monotonic() >= self.resume:
            super().set_accept_enabled(enabled)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait no longer than the pause lasts; look after the threads; stop after SIGQUIT."""
        self.show_busy()
        if self.quitting:
            super().handle_quit(SIGQUIT, None)
        if len(self.busy) >= self.cfg.threads:
            self.take_requests()
        if self._accepting and self.is_stuck():
            # When connections wait at two looks, all other workers are stuck as well. Then accept,
            # because one of them may be a probe.
            waited, self.waiting = self.waiting, bool(self.backlog.poll(0))
            if not (waited and self.waiting):
                self.pause(STUCK_PAUSE)
        # In this order: a thread that becomes busy from here on wakes this one.
        self.asleep = True
        now = monotonic()
        recently = now - (max(self.finished, self.full) if self.metrics else self.full) < 1
        if recently or len(self.busy) >= self.cfg.threads or (self.metrics and self.busy) or not self.alive:
            self.asleep = False
            timeout = min(timeout, STUCK)
        if self.alive and not self._accepting and self.nr_conns < self.worker_connections:
            # Not without a limit if the pause has ended just now: nothing else would end the wait.
            timeout = min(timeout, max(0.0, self.resume - now))
        super().wait_for_and_dispatch_events(timeout)
        self.asleep = False

    def take_requests(self) -> None:
        """While all threads are busy: count the requests that wait, and answer the probes among them."""
        for descriptor, _ in self.requests.poll(0, max(1, self.worker_connections)):
            if conn := self.keepalived_conns.pop(descriptor, None):
                self.taken.append(conn)
        while self.taken and len(self.busy) < self.cfg.threads:
            # A thread has become free meanwhile, and may not look here before the next request.
            with suppress(IndexError):
                conn = self.taken.popleft()
                conn.timeout = max(conn.timeout, monotonic() + STUCK)
                self.wait_for_request(conn)
        if self.is_stuck():
            for conn in [*self.taken]:
                if path := self.probed_path(conn):
                    with suppress(ValueError):  # a thread was faster
                        self.taken.remove(conn)
                        conn.probe = conn.data_ready = True
                        self.probe_pools[path].submit(self.respond, conn)

    def show_busy(self) -> None:
        """Write the metrics, ten times a second at most: how many threads are busy, and the rest."""
        if self.metrics and monotonic() - self.shown > SHOW:
            self.shown = monotonic()
            self.busy_shown = len(self.busy)
            self.metrics.threads_busy.set(self.busy_shown)
            self.metrics.waiting.set(len(self.taken))
            self.metrics.write()
