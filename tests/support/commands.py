"""Run commands, wait for something, and find free ports."""

import fcntl
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
HOUSEKEEPING = shutil.ignore_patterns(".git", ".venv", ".run", ".data", ".env", ".*_cache", "__pycache__")


def _ports() -> Iterator[int]:
    """Ports below those that the kernel gives to outgoing connections, shared out among the workers."""
    # gw0, gw1, ... with pytest-xdist: each takes every n-th port, so that no two try the same one.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(10_000 + worker, 32_000, workers)
    # Somewhere, so that another run on this machine is elsewhere.
    start = random.SystemRandom().randrange(len(ports))
    yield from ports[start:]
    yield from ports[:start]


PORTS = _ports()
# Every server, process group and Compose project that was started, for the logs of a failing test.
STARTED: list[Any] = []
# The variable that names the test run, in the controller of pytest-xdist and in its workers.
RUN = "PYTEST_RUN"


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on; never twice, as the ports are used later."""
    for port in PORTS:
        try:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise AssertionError("no free port left")


def poll(check: Callable[[], Any], seconds: float = 20, log: Callable[[], str] = str) -> Any:
    """The first true result of `check`; fails with the log when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {check}\n{log()}")
        time.sleep(0.05)
    return result


def run(*command: str | Path, expect: int | None = 0, **options: Any) -> str:
    """A command's combined output; fails with it unless the exit code is the expected one."""
    options = {"cwd": ROOT, "timeout": 300, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    result = subprocess.run([str(word) for word in command], text=True, check=False, **options)
    if expect is not None and result.returncode != expect:
        pytest.fail(f"{command}: exit code {result.returncode}, expected {expect}\n{result.stdout}")
    return result.stdout


@contextmanager
def one_at_a_time(what: str) -> Iterator[None]:
    """Hold off the other workers of this test run meanwhile."""
    with Path(tempfile.gettempdir(), f"pytest-{os.environ[RUN]}-{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def last_lines(text: str, count: int = 100) -> str:
    """The end of a log."""
    return "\n".join(text.splitlines()[-count:])


def lacking(reason: str) -> NoReturn:
    """Skip for what this machine lacks; fail where REQUIRE_DOCKER=1 says that everything is there."""
    if os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def answers(url: str) -> bool:
    """Whether something at `url` answers below 400."""
    try:
        return httpx2.get(url, trust_env=False).status_code < 400
    except httpx2.HTTPError:
        return False


def addresses(services: Iterable[str], ports: Mapping[str, str]) -> dict[str, str]:
    """Where each of the services answers over plain HTTP; `ports` by variable."""
    variables = {service: f"{service.upper().replace('-', '_')}_PORT" for service in services}
    return {name: f"http://127.0.0.1:{ports[port]}" for name, port in variables.items() if port in ports}
