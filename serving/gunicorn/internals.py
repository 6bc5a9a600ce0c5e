"""What is changed inside Gunicorn for every worker class. docs/patches.md has a row for each change.

Whatever is overridden is looked up first: a release of Gunicorn that renamed it does not start,
instead of silently working without the change.
"""

import os
import signal
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

import gunicorn
import gunicorn.workers.base

from serving import health, logs, peers, settings

# The signals with which the arbiter stops a worker.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)
# What an SQLite database begins with.
SQLITE = b"SQLite format 3\0"

# Worker -> its exit code, or the negative number of the signal that ended it. See keep_exit_statuses.
exit_statuses: dict[int, int] = {}

# True while Gunicorn itself answers a request that failed, and writes its access line.
answering_error: ContextVar[bool] = ContextVar("answering_error", default=False)


def require(owner: object, *names: str) -> None:
    """Raise SettingError unless `owner`, a class or object of Gunicorn's, has all these attributes."""
    for name in names:
        if not hasattr(owner, name):
            kind = owner if isinstance(owner, type) else type(owner)
            raise settings.SettingError(
                f"Gunicorn {gunicorn.__version__} has no {kind.__name__}.{name}, which serving/ overrides: "
                "install a version that docs/patches.md names"
            )


def drain_on_sigterm(arbiter: Any) -> None:
    """Let SIGTERM make the server unready, and stop it only DRAIN_SECONDS later.

    The arbiter's main loop runs on meanwhile: it replaces workers and obeys other signals. A second
    SIGTERM ends the drain, SIGINT and SIGQUIT stop the server immediately.
    """
    require(arbiter, "handle_term", "signal", "SIG_NAMES", "log")
    seconds = health.drain_seconds()
    stop: Callable[[], None] = arbiter.handle_term

    def drain() -> None:
        if not seconds or health.draining():
            return stop()
        health.start_drain()
        arbiter.log.info("Draining for %d s: /readyz answers 503", seconds)
        # The alarm arrives in the main loop like any other signal; a forked worker does not inherit it.
        signal.signal(signal.SIGALRM, arbiter.signal)
        signal.alarm(seconds)
        return None

    arbiter.handle_term = drain
    arbiter.handle_alrm = stop


def spawn_without_losing_signals(arbiter: Any) -> None:
    """Hold signals back while a worker is forked.

    The new process has the arbiter's handlers, which only fill a queue that it never reads, until
    `post_fork` replaces them. A signal that it gets before then would be lost, and the arbiter would
    wait for the worker until the graceful timeout.
    """
    require(arbiter, "spawn_worker")
    spawn_worker: Callable[[], Any] = arbiter.spawn_worker

    def spawn() -> Any:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    arbiter.spawn_worker = spawn


def call_once_a_second(arbiter: Any, function: Callable[[], None]) -> None:
    """Let the arbiter's main loop call this function, as it looks for silent workers."""
    require(arbiter, "murder_workers")
    murder_workers: Callable[[], None] = arbiter.murder_workers

    def murder_and_call() -> None:
        murder_workers()
        function()

    arbiter.murder_workers = murder_and_call


def keep_exit_statuses(arbiter: Any) -> None:
    """Remember how each worker has ended while `child_exit` runs, which is not told."""
    require(arbiter, "reap_workers")
    reap_workers: Callable[[], None] = arbiter.reap_workers
    waitpid = os.waitpid

    def wait_and_keep(pid: int, options: int) -> tuple[int, int]:
        found, status = waitpid(pid, options)
        if found:
            exit_statuses[found] = os.waitstatus_to_exitcode(status)
        return found, status

    def reap() -> None:
        # The arbiter has no other thread that could wait for a process meanwhile.
        os.waitpid = wait_and_keep
        try:
            reap_workers()
        finally:
            os.waitpid = waitpid
            exit_statuses.clear()

    arbiter.reap_workers = reap


def refuse_shared_connections(name: str = "PRELOAD") -> None:
    """Raise SettingError when this process has a connection that the workers would share."""
    for peer in connections():
        raise settings.SettingError(
            f"{name}='on': must be off, because the application connects to {peer} when it is imported and "
            "all workers would share that connection; connect later, or set PRELOAD=off (in .env.SERVICE)"
        )


def connections() -> list[str]:
    """The peers of this process's connections; none where the system does not list open files.

    Without sockets that a supervisor handed over as standard streams, datagrams (a log), and pairs
    of sockets that lead to this process itself, which have no name. With SQLite databases, which a
    forked process must not use either (https://www.sqlite.org/howtocorrupt.html, section 2.6).
    """
    peers_found = []
    descriptors = os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else []  # noqa: PTH112, PTH208
    for descriptor in map(int, descriptors):
        with suppress(OSError):  # the listing's own file; a socket that is not connected
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISREG(mode) and os.pread(descriptor, len(SQLITE), 0) == SQLITE:
                peers_found.append(file_name(descriptor))
            if descriptor > 2 and stat.S_ISSOCK(mode):
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    peer = connection.getpeername()
                    if peer and connection.type == socket.SOCK_STREAM:
                        peers_found.append(address(peer))
    return peers_found


def address(peer: Any) -> str:
    """A peer's address and port, or the path of a unix socket."""
    if isinstance(peer, tuple):
        return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
    return peer.decode(errors="replace") if isinstance(peer, bytes) else str(peer)


def file_name(descriptor: int) -> str:
    """The path of an open file, on Linux."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return "an SQLite database"


class IdentifiedSocket:
    """A client's socket that adds X-Request-ID to the response that Gunicorn writes itself."""

    def __init__(self, client: Any, identity: str) -> None:
        self._client = client
        self._identity = identity

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sendall(self, response: bytes) -> None:
        """Send the response with one more header."""
        status, end, rest = response.partition(b"\r\n")
        self._client.sendall(status + end + b"X-Request-ID: " + self._identity.encode() + end + rest)


def identify_errors() -> None:
    """Give the 400 and 500 that Gunicorn answers itself a request id, in the log and in the response.

    The request's own id if it reached the application, otherwise a new one. What Gunicorn logs
    about the request contains no query string.
    """
    worker_class = gunicorn.workers.base.Worker
    require(worker_class, "handle_error")
    handle_error = worker_class.handle_error
    if hasattr(handle_error, "__wrapped__"):
        return

    @wraps(handle_error)
    def identified(worker: Any, request: Any, client: Any, peer: Any, error: BaseException) -> None:
        if request is None or peers.request_id.get() == "-":
            peers.request_id.set(peers.request_id_for(None))
        for received in (request, getattr(error, "req", None)):
            if received is not None and getattr(received, "uri", None):
                received.uri = logs.without_queries(received.uri)
        answering_error.set(True)
        try:
            handle_error(worker, request, IdentifiedSocket(client, peers.request_id.get()), peer, error)
        finally:
            answering_error.set(False)

    worker_class.handle_error = identified
