"""Checks of dependencies: one at a time, bounded, with a result that is used again for a moment."""

import asyncio
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving import health
from tests.support.commands import run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter times than in production."""
    monkeypatch.setattr(health, "CHECK_TIMEOUT", 0.3)
    monkeypatch.setattr(health, "CHECK_CACHED", 0.2)


class Dependency:
    """A dependency that counts how often it is asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.calls = self.running = self.most = 0
        self.answers = threading.Event()
        self.answers.set()
        self.error: Exception | None = None

    def __call__(self) -> None:
        """Answer, or raise the error."""
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.answers.wait(10)
        self.running -= 1
        if self.error:
            raise self.error

    async def ask(self) -> None:
        """The same for an event loop."""
        await asyncio.to_thread(self)


def test_a_failure_is_named_by_its_type_only() -> None:
    """A message may contain an address or a password, and /readyz is public."""
    dependency = Dependency()
    dependency.error = OSError("password=hunter2")
    assert health.Checks({"database": dependency, "cache": int}).failures() == {"database": "OSError"}


def test_many_probes_ask_once_and_the_result_is_used_again() -> None:
    """A burst of probes makes one call, the next one comes when the result is too old."""
    dependency = Dependency()
    checks = health.Checks({"database": dependency})
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda _: checks.failures(), range(40))] == [{}] * 40
    assert dependency.calls == 1
    time.sleep(0.25)
    assert checks.failures() == {}
    assert dependency.calls == 2


def test_a_hung_dependency_is_waited_for_once() -> None:
    """The first probe waits for the limit, the following ones get the answer immediately."""
    dependency = Dependency()
    dependency.answers.clear()
    checks = health.Checks({"static files": int, "database": dependency})
    hung = {"database": health.NO_ANSWER}
    start = time.monotonic()
    assert checks.failures() == hung
    assert 0.25 < time.monotonic() - start < 2
    for _ in range(20):
        start = time.monotonic()
        assert checks.failures() == hung
        assert time.monotonic() - start < 0.1
    assert dependency.calls == 1
    dependency.answers.set()
    deadline = time.monotonic() + 5
    while checks.failures() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert checks.failures() == {}
    assert dependency.most == 1


def test_a_probe_does_not_wait_again_while_the_dependency_stays_hung() -> None:
    """Also when each call ends late with an error, as with a connect timeout: no probe waits twice."""

    def slow() -> None:
        time.sleep(0.5)
        raise TimeoutError

    checks = health.Checks({"database": slow})
    assert checks.failures() == {"database": health.NO_ANSWER}
    slowest = 0.0
    for _ in range(24):  # two calls and their pauses
        start = time.monotonic()
        assert checks.failures()
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.05)
    assert slowest < 0.1


def test_the_event_loop_has_the_same_bounds() -> None:
    """One task, one call at a time, the same answers; the loop is free meanwhile."""
    dependency = Dependency()

    async def ask() -> None:
        checks = health.AsyncChecks({"database": dependency.ask})
        assert await asyncio.gather(*(checks.failures() for _ in range(20))) == [{}] * 20
        assert dependency.calls == 1
        await asyncio.sleep(0.25)
        dependency.answers.clear()
        waiting = asyncio.create_task(checks.failures())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert await waiting == {"database": health.NO_ANSWER}
        start = time.monotonic()
        assert await checks.failures() == {"database": health.NO_ANSWER}
        assert time.monotonic() - start < 0.1
        dependency.answers.set()

    asyncio.run(ask())
    assert dependency.most == 1


def test_the_event_loop_gives_up_a_hung_check() -> None:
    """A connection that never answers must not hide that the dependency is back."""
    hung, cancelled = True, 0

    async def ask() -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(60 if hung else 0)
        except asyncio.CancelledError:
            cancelled += 1
            raise

    async def probes() -> None:
        nonlocal hung
        checks = health.AsyncChecks({"database": ask})
        assert await checks.failures() == {"database": health.NO_ANSWER}
        await asyncio.sleep(0.05)
        assert cancelled == 1
        hung = False
        await asyncio.sleep(0.25)
        await checks.failures()  # starts the next run, and does not wait for it
        await asyncio.sleep(0.05)
        assert await checks.failures() == {}

    asyncio.run(probes())


def status(failures: dict[str, str], query: str = "once") -> tuple[int, str]:
    """Status and state that /readyz answers."""
    code, _, body = health.answer("/readyz", failures, query)
    return code, json.loads(body)["status"]


def test_a_dependency_that_goes_away_takes_no_server_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready before the first success, degraded afterwards, unready in a drain; /readyz is strict."""
    monkeypatch.setattr(health, "_flags", bytearray(2))
    away = {"database": "OSError"}
    assert status(away) == (503, "unready")
    assert status({}, "") == (200, "ok")
    assert status(away) == (200, "degraded")
    assert status(away, "") == (503, "unready")
    assert status({}) == (200, "ok")
    health.start_drain()
    assert status({}) == (503, "unready")


FORK = """
import os
from serving import health
read, write = os.pipe()
child = os.fork()
if child == 0:  # a worker
    os.read(read, 1)
    os._exit(7 if health.draining() and health.was_ready() else 8)
assert health.answer("/readyz", {})[0] == 200
health.start_drain()
os.write(write, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), health.answer("/livez", {})[0])
print(*health.answer("/readyz", {}))
"""


def test_a_drain_and_readiness_are_seen_by_forked_workers() -> None:
    """The flags are bytes of shared memory: no file, no folder to write to."""
    flags, ready = run(sys.executable, "-c", FORK).splitlines()
    assert flags == "7 200"
    assert ready.startswith("503 ")
    assert """{"status": "unready", "failed": {"draining": "stopping"}}""" in ready
