"""The fixtures that start servers, processes and containers for the tests."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest

# The names that are not used here are for modules that have not been moved to tests.support yet.
from tests.support.commands import ROOT, answers, free_port, lacking, poll, run  # noqa: F401
from tests.support.containers import Containers
from tests.support.processes import PROGRAMS, Processes, Stack  # noqa: F401
from tests.support.servers import Server  # noqa: F401


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line per reason what was skipped."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} tests skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session", autouse=True)
def logs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where single servers write to."""
    os.environ["PYTEST_LOGS"] = str(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip without a Docker engine; fail instead where REQUIRE_DOCKER=1 says that one must be there."""
    try:
        answered = not subprocess.run(
            ["docker", "info"], capture_output=True, timeout=20, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        answered = False
    if not answered:
        lacking("no Docker engine answers")


@pytest.fixture(scope="session")
def containers(engine: None) -> Iterator[Containers]:
    """Every service in its container; shared, so leave it as it was."""
    stack = Containers(COMPOSE_PROFILES="*")
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Every service as a local process; shared, so leave it as it was."""
    stack = Processes(tmp_path_factory.mktemp("processes"))
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """A client that keeps cookies and follows no redirect."""
    with httpx2.Client(trust_env=False) as client:
        yield client


@pytest.fixture(params=["processes", "containers"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Every service, in both runtimes."""
    return request.getfixturevalue(request.param)
