"""The fixtures that start servers, processes and containers, and the marks that follow from them."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, RUN, STARTED, lacking
from tests.support.containers import Containers, remove_leftovers, up_until_teardown
from tests.support.processes import PROGRAMS, Processes, Stack
from tests.support.servers import Server
from tests.support.swarm import Swarm

# Started once per pytest-xdist worker and used by many files: their tests run in the same worker.
SHARED = [
    "containers",
    "hybrid",
    "processes",
]
# Each kind of application container, and the fixture that starts it.
PLACES = dict.fromkeys(PROGRAMS, "containers")
PLACES["fastapi-hybrid"] = "hybrid"
BEFORE = pytest.StashKey[tuple[float, int]]()


def pytest_configure(config: pytest.Config) -> None:
    """Name the run, and register the marks; few of them have to be written at a test."""
    os.environ.setdefault(RUN, secrets.token_hex(3))
    # A run in the background (nohup, &) ignores both, and so would everything that it starts.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # `make test` would pass its own flags on to each make that a test starts.
    for name in ("MAKEFLAGS", "MAKELEVEL"):
        os.environ.pop(name, None)
    if getattr(config.option, "loadgroup", False):
        config.pluginmanager.register(IdWithGroup())
    config.addinivalue_line("markers", "xdist_group(name): tests for one worker of pytest-xdist")
    config.addinivalue_line("markers", "containers: needs a container engine")
    config.addinivalue_line("markers", "slow: not part of `make test`")
    config.addinivalue_line("markers", "alone: measures time or memory under load; nothing runs next to it")


def pytest_unconfigure(config: pytest.Config) -> None:
    """After Ctrl-C, pytest-xdist ends its workers before they have removed their containers."""
    if getattr(config.option, "numprocesses", None):
        for lock in Path(tempfile.gettempdir()).glob(f"pytest-{os.environ[RUN]}-*.lock"):
            lock.unlink()
        if shutil.which("docker"):
            remove_leftovers()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """With `-n auto`, two workers per CPU: most tests wait most of the time."""
    return 2 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4


@cache
def shares_a_fixture(path: Path) -> bool:
    """Whether the tests of a file have something in common that takes time to make."""
    return '@pytest.fixture(scope="module"' in path.read_text()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by fixture and folder, and keep the tests that share a stack in one worker."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        chosen = {parameters.get("stack"), PLACES.get(parameters.get("place", ""))}
        names = chosen.union(getattr(item, "fixturenames", ()))
        folder = item.path.parent.relative_to(ROOT / "tests").as_posix()
        if names & {"engine", "containers", *PLACES.values()}:
            item.add_marker("containers")
        if folder == "repository" or item.get_closest_marker("alone"):
            item.add_marker("slow")
        shared = next((name for name in SHARED if name in names), "")
        if shared or folder in ("containers", "edge", "repository") or shares_a_fixture(item.path):
            item.add_marker(pytest.mark.xdist_group(shared or item.path.stem))


class IdWithGroup:
    """Adds the group to the end of a test's id, where `--dist loadgroup` looks for it.

    pytest-xdist 3.8 does so by an attribute that pytest 9.2 no longer reads. Remove this class when a
    newer pytest-xdist does it again: then every id has its group already, and nothing happens here.
    """

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Change the ids, after pytest-xdist has tried."""
        for item in items:
            group = item.get_closest_marker("xdist_group")
            if group and not item.nodeid.endswith(f"@{group.args[0]}"):
                item._id = item.id.parse(f"{item.nodeid}@{group.args[0]}")
                assert item.nodeid.endswith(f"@{group.args[0]}"), "pytest has no Node._id any more"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Remember what was started before the test."""
    item.stash[BEFORE] = (time.time(), len(STARTED))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the log of every server, process and container that a failing test used."""
    report = yield
    if report.failed:
        since, number = item.stash[BEFORE]
        used = {id(value): value for value in [*getattr(item, "funcargs", {}).values(), *STARTED[number:]]}
        for server in used.values():
            if isinstance(server, Server | Containers | Processes | Swarm):
                report.sections.append((f"log of {server.name}", server.recent_log(since)))
    return report


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
    yield from up_until_teardown(Containers())


@pytest.fixture(scope="session", name="hybrid")
def hybrid(engine: None) -> Iterator[Containers]:
    """The edge and FastAPI alone, in Uvicorn workers under Gunicorn; shared, so leave it as it was."""
    yield from up_until_teardown(Containers(FASTAPI_TARGET="fastapi-hybrid"), "fastapi")


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


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> tuple[Containers, str]:
    """Each kind of application container: its stack, and its service there."""
    return request.getfixturevalue(PLACES[request.param]), request.param.partition("-")[0]
