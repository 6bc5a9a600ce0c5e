"""Every server mode starts as it is typed, serves, and stops; what differs is pinned down."""

import re
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bench import edge, guide, report
from bench.modes import MODES, ROOT, SECONDS_TO_STOP, Mode
from tests.support.commands import lacking, poll, run

pytestmark = pytest.mark.alone

# Of the benchmark, one for each kind of figures and of pictures.
PARTS = ("modes", "workers", "front", "losses", "latency")

INSTALLED = [mode for mode in MODES if not mode.missing]
ASGI = [mode for mode in INSTALLED if mode.app == "fastapi"]
OURS = [mode for mode in ASGI if mode.kind in ("recommended", "alternative")]


def named(name: str) -> Mode:
    """The mode of that name."""
    return next(mode for mode in MODES if mode.name == name)


@pytest.fixture(scope="module", autouse=True)
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A database and static files for Django."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(tmp_path_factory.mktemp("data")))
        patch.setenv("DJANGO_SECRET_KEY", "of a test")
        for command in (["migrate", "-v0"], ["collectstatic", "--noinput", "-v0"]):
            run(sys.executable, "-m", "wsgi_app.django_site", *command)
        yield


def test_the_benchmarks_image_has_the_python_of_the_images() -> None:
    """Its Dockerfile names the base image a second time."""
    (base,) = re.findall(r"(?m)^FROM (\S+)$", (ROOT / "bench/Dockerfile").read_text())
    assert f"FROM {base} AS python-default\n" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("mode", INSTALLED, ids=lambda mode: mode.name)
def test_every_mode_serves_as_it_is_typed(mode: Mode) -> None:
    """The command of modes.toml, verbatim: it starts, answers, and, but for yardsticks, ends on SIGTERM."""
    with mode.running(equal=False) as server:
        assert httpx2.get(server.url + "/").status_code == 200, server.log.read_text()
        if mode.kind == "yardstick":
            return  # Granian at times ignores a SIGTERM that comes right after its start; not ours to keep.
        tree = server.tree()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS_TO_STOP) in (0, -signal.SIGTERM), server.log.read_text()
    poll(lambda: not [pid for pid in tree if Path(f"/proc/{pid}").exists()])


@pytest.mark.parametrize("mode", ASGI, ids=lambda mode: mode.name)
def test_every_asgi_mode_echoes_over_the_websocket(mode: Mode) -> None:
    """WebSockets work in each of them."""
    with (
        mode.running() as server,
        connect(server.url.replace("http", "ws") + "/ws") as socket,
    ):
        socket.send("hello")
        assert socket.recv(timeout=10) == "hello"


@pytest.mark.parametrize("name", ["flask gthread", "django gthread"])
def test_a_wsgi_mode_refuses_the_websocket(name: str) -> None:
    """The answer is a plain 404, not a connection that hangs."""
    with (
        named(name).running() as server,
        pytest.raises(InvalidStatus) as refused,
        connect(server.url.replace("http", "ws") + "/ws"),
    ):
        pass
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize("mode", OURS, ids=lambda mode: mode.name)
def test_every_asgi_mode_of_ours_waits_on_many_at_once(mode: Mode) -> None:
    """Thirty-two streams of one second each take about one second together, not thirty-two."""
    with mode.running() as server, ThreadPoolExecutor(32) as pool:
        url = server.url + "/events?count=2&interval=1"
        answers = list(pool.map(lambda _: httpx2.get(url, timeout=20), range(32)))
    assert {answer.status_code for answer in answers} == {200}
    slowest = max(answer.elapsed.total_seconds() for answer in answers)
    assert slowest < 8, f"{slowest} s"


def test_the_benchmark_measures_and_draws() -> None:
    """`make bench` for one mode: a row without errors, a file for each part, and the pictures."""
    for program in ("wrk", "h2load"):
        if not shutil.which(program):
            lacking(f"no {program} on this machine")
    output = run(sys.executable, "-m", "bench", *PARTS, "--quick", "--only", "^flask gthread$")
    assert re.search(r"^\| \*\*flask gthread\*\* \| \d+ .*\| 0 \|$", output, re.MULTILINE), output
    written = re.search(r"^written: (\S+)$", output, re.MULTILINE)
    assert written
    directory = Path(written[1])
    results = guide.results(directory)
    assert results.keys() == set(PARTS)
    assert results["modes"]["figures"][0]["rate"] > 0
    assert results["losses"]["figures"]["flask gthread"]["recycling"]["lost"] == 0
    assert report.pictures(results) == {path.name: path.read_text() for path in directory.glob("*.svg")}
    shutil.rmtree(directory)


def test_the_edge_is_measured(engine: None) -> None:
    """`make bench PART=edge`: every way to every service answers without an error."""
    if not shutil.which("wrk"):
        lacking("no wrk on this machine")
    output = run(sys.executable, "-m", "bench", "edge", "--quick")
    for service in edge.PORTS:
        for way in edge.WAYS:
            assert re.search(rf"^\| {service}, {way.name} \| .* \| 0 \|$", output, re.MULTILINE), output
