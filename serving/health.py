"""Liveness, readiness, the drain flag, and the checks of an application's dependencies.

`python -m serving.health [--wait SECONDS] URL ...` exits 0 when every URL answers below 400.
A container's own health check is serving/probe.py, which costs less than an interpreter with
these imports.
"""

import argparse
import asyncio
import json
import logging
import mmap
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from serving import settings

LIVE, READY = "/livez", "/readyz"
PATHS = (LIVE, READY)
# The query of READY for what distributes requests: see `answer`.
ONCE = "once"
METHODS = ("GET", "HEAD")

# Seconds that `python -m serving.health` waits for one answer.
PROBE_TIMEOUT = 4

# Seconds in which the checks must answer, and seconds that their result may be used again.
CHECK_TIMEOUT, CHECK_CACHED = 3.0, 1.0

NO_ANSWER = f"no answer within {CHECK_TIMEOUT:g} s"

logger = logging.getLogger(__name__)

# Two flags in anonymous memory. A forked worker shares them with its parent, so that the parent's
# drain is visible in every worker without a file; a full disk cannot prevent a drain.
_flags = mmap.mmap(-1, 2)
_DRAINING, _WAS_READY = 0, 1


def start_drain() -> None:
    """Answer /readyz with 503 from now on, in this process and in those that it forked."""
    _flags[_DRAINING] = 1


def draining() -> bool:
    """Whether this server is about to stop."""
    return _flags[_DRAINING] == 1


def set_ready() -> None:
    """From now on, /readyz?once answers 200 until the drain."""
    _flags[_WAS_READY] = 1


def was_ready() -> bool:
    """Whether all checks have succeeded at the same time, in any worker of this server."""
    return _flags[_WAS_READY] == 1


def drain_seconds() -> int:
    """DRAIN_SECONDS: how long a server goes on serving after SIGTERM, unready, before it stops."""
    return settings.drain_seconds()


class Results:
    """The result of an application's checks, and when it was found. See Checks and AsyncChecks.

    At most one run at a time; its result counts for CHECK_CACHED seconds. A check that has not
    answered within CHECK_TIMEOUT has failed, also when it succeeds afterwards. While such a check
    is still running, or was the last one, a probe is answered immediately: it does not wait again.
    """

    def __init__(self, checks: Mapping[str, Callable[[], Any]]) -> None:
        self.checks = dict(checks)
        self.current = ""  # the check that is running
        self.started = self.finished = float("-inf")
        self.running = self.late = False
        self.failures: dict[str, str] = {}

    def start(self) -> bool:
        """Whether the caller has to run the checks, because no result is recent and no run goes on."""
        now = time.monotonic()
        if self.running or now - self.finished < CHECK_CACHED:
            return False
        self.started, self.running = now, True
        return True

    def patience(self) -> float:
        """Seconds that a probe may wait for the run that goes on."""
        if not self.running or self.late:
            return 0
        return max(0, self.started + CHECK_TIMEOUT - time.monotonic())

    def time_out(self) -> None:
        """Count the check that is still running as failed."""
        if self.running and not self.late and time.monotonic() - self.started >= CHECK_TIMEOUT:
            self.late = True
            self.failures = {self.current: NO_ANSWER}
            logger.warning("not ready: %s: %s", self.current, NO_ANSWER)

    def finish(self, errors: Mapping[str, Exception]) -> None:
        """Take the result of the run that ends now."""
        self.finished, self.running = time.monotonic(), False
        if self.finished - self.started >= CHECK_TIMEOUT:
            self.late = True
            self.failures = self.failures or {self.current: NO_ANSWER}
            return
        self.late = False
        for name, error in errors.items():
            logger.warning("not ready: %s: %s", name, error)
        # The type only: a message could contain an address or a password, and /readyz is public.
        self.failures = {name: type(error).__name__ for name, error in errors.items()}


class Checks:
    """Checks as functions that raise, run in one daemon thread, which never is one that serves."""

    def __init__(self, checks: Mapping[str, Callable[[], Any]]) -> None:
        self._results = Results(checks)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def failures(self) -> dict[str, str]:
        """The checks that failed and why; waits for at most CHECK_TIMEOUT seconds."""
        results = self._results
        if not results.checks:
            return {}
        with self._changed:
            if results.start():
                # Not earlier: a thread does not survive the fork of a worker.
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="checks", daemon=True)
                    self._thread.start()
                self._changed.notify_all()
            self._changed.wait_for(lambda: not results.running, results.patience())
            results.time_out()
            return dict(results.failures)

    def _work(self) -> None:
        """Run the checks whenever `failures` asks for it. One thread, one database connection."""
        results = self._results
        while True:
            with self._changed:
                self._changed.wait_for(lambda: results.running)
            errors: dict[str, Exception] = {}
            for name, check in results.checks.items():
                results.current = name
                try:
                    check()
                except Exception as error:  # noqa: BLE001  a dependency may raise anything
                    errors[name] = error
            with self._changed:
                results.finish(errors)
                self._changed.notify_all()


class AsyncChecks:
    """Checks as coroutine functions that raise, run in one task of the event loop that asks.

    A run is cancelled after CHECK_TIMEOUT, which the thread of Checks cannot be. Cancelling does not
    end a function that `asyncio.to_thread` runs: give such a check a timeout of its own.
    """

    def __init__(self, checks: Mapping[str, Callable[[], Awaitable[Any]]]) -> None:
        self._results = Results(checks)
        self._task: asyncio.Task[None] | None = None

    async def failures(self) -> dict[str, str]:
        """The checks that failed and why; waits for at most CHECK_TIMEOUT seconds."""
        results = self._results
        if not results.checks:
            return {}
        if results.start():
            self._task = asyncio.create_task(self._run())
        if self._task is not None and (patience := results.patience()):
            await asyncio.wait([self._task], timeout=patience)
        results.time_out()
        return dict(results.failures)

    async def _run(self) -> None:
        results = self._results
        deadline = asyncio.get_running_loop().time() + CHECK_TIMEOUT
        errors: dict[str, Exception] = {}
        for name, check in results.checks.items():
            results.current = name
            try:
                # A check that hung until TCP gives up would hide that the dependency is back.
                async with asyncio.timeout_at(deadline):
                    await check()
            except Exception as error:  # noqa: BLE001  a dependency may raise anything
                errors[name] = error
        results.finish(errors)


Answer = tuple[HTTPStatus, list[tuple[str, str]], bytes]


def answer(path: str, failures: Mapping[str, str], query: str = "") -> Answer:
    """Status, headers and JSON body of a probe; `failures` are the checks that failed, and why.

    The edge and Kubernetes ask /readyz?once: a server that was ready once gets requests until it
    drains. Its replicas have the same dependencies. Without this query, one that is away would take
    all of them out, and with them the requests that do not need it.
    """
    failed = dict(failures)
    if path == READY and not failed:
        set_ready()
    unready = bool(failed) and not (query == ONCE and was_ready())
    if path == READY and draining():
        failed["draining"] = "stopping"
        unready = True
    state = "unready" if unready else "degraded" if failed else "ok"
    body = json.dumps({"status": state, "failed": failed}).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    return HTTPStatus.SERVICE_UNAVAILABLE if unready else HTTPStatus.OK, headers, body


def not_allowed() -> Answer:
    """The same of a probe with another method than METHODS."""
    body = json.dumps({"title": "Method Not Allowed", "status": 405}).encode()
    headers = [
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(body))),
        ("Allow", ", ".join(METHODS)),
    ]
    return HTTPStatus.METHOD_NOT_ALLOWED, headers, body


def ask(url: str) -> str:
    """Ask once; "" when the answer is below 400, otherwise what was wrong."""
    try:
        # Without the proxy variables: a probe asks its own machine.
        with build_opener(ProxyHandler({})).open(url, timeout=PROBE_TIMEOUT):
            return ""
    except HTTPError as error:
        return f"{url}: {error.code} {error.read(1000).decode(errors='replace')}"
    except (OSError, HTTPException) as error:
        return f"{url}: {getattr(error, 'reason', error)}"


def main() -> None:
    """The command line; exits with the first failure's text."""
    parser = argparse.ArgumentParser(prog="python -m serving.health", description=__doc__)
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="ask again for so long")
    parser.add_argument("--drain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("url", nargs="*")
    arguments = parser.parse_args()
    if arguments.drain:
        parser.error("--drain is gone: SIGTERM drains without it, for DRAIN_SECONDS")
    deadline = time.monotonic() + arguments.wait
    for url in arguments.url or [f"http://127.0.0.1:{settings.text('PORT', '8000')}{READY}"]:
        while failure := ask(url):
            if time.monotonic() > deadline:
                sys.exit(failure)
            time.sleep(0.2)


if __name__ == "__main__":
    main()
