"""uvicorn.json means what docs/uvicorn.md says, and an application that cannot start ends the server."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, free_port, poll
from tests.support.servers import Server

FILE = json.loads((ROOT / "uvicorn.json").read_text())
APP = """
import os


async def app(scope, receive, send):
    body = b"%d " % os.getpid() + b"one"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


def prepare(directory: Path, source: str = APP, **options: object) -> None:
    """An application and the repository's uvicorn.json, adapted to it, in an empty directory."""
    (directory / "application.py").write_text(source)
    own = {"app": "application:app", "log_config": str(ROOT / "serving/logging.json"), "lifespan": "off"}
    (directory / "uvicorn.json").write_text(json.dumps(FILE | own | {"workers": 1} | options))


def launch(directory: Path, *flags: str, **environ: str) -> Server:
    """`python -m serving.uvicorn` there, with the repository's code."""
    base = {"HOST": "127.0.0.1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return Server("serving.uvicorn", *flags, cwd=directory, **base, **environ)


def ask(server: Server) -> tuple[int, str]:
    """The process that answered, and what it said."""
    pid, text = httpx2.get(server.url, trust_env=False).text.split()
    return int(pid), text


def refusal(directory: Path) -> str:
    """The one line with which the start ends."""
    with launch(directory) as server:
        assert server.exit_code() != 0, server.log()
        lines = server.log().splitlines()
        assert len(lines) == 1, server.log()
        return lines[0]


def test_every_key_of_the_file_has_its_reason() -> None:
    """The table in docs/uvicorn.md and uvicorn.json have the same keys, in the same order."""
    page = (ROOT / "docs/uvicorn.md").read_text().partition("## Options that are not in the file")[0]
    assert list(FILE) == re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
def test_a_flag_beats_a_variable_beats_the_file(sources: int, tmp_path: Path) -> None:
    """Flag > UVICORN_* > PORT, LOG_LEVEL, WEB_CONCURRENCY > file, whichever of them are set."""
    ports = [free_port() for _ in range(4)]
    prepare(tmp_path, port=ports[0], workers=1, log_level="info")
    plain = {"PORT": str(ports[1]), "WEB_CONCURRENCY": "2", "LOG_LEVEL": "critical"}
    own = {"UVICORN_PORT": str(ports[2]), "UVICORN_WORKERS": "1", "UVICORN_LOG_LEVEL": "info"}
    flags = ("--port", str(ports[3]), "--workers", "2", "--log-level", "critical")
    environ = ({"PORT": ""}, plain, plain | own, plain | own)[sources - 1]
    with launch(tmp_path, *(flags if sources == 4 else ()), **environ) as server:
        server.url = f"http://127.0.0.1:{ports[sources - 1]}"
        server.wait()
        pid, _ = ask(server)
        # The first and the third source ask for one talkative worker, the others for two quiet ones.
        assert (sources in (1, 3)) == (pid == server.process.pid), server.log()
        assert (sources in (1, 3)) == ("Uvicorn running" in server.log()), server.log()
        assert (sources == 1) == ("workers=1 (configuration file)" in server.log()), server.log()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"header": ["a:b"]}', "unknown key 'header'; did you mean 'headers'?"),
        ('{"keepalive": 5}', "unknown key 'keepalive'; "),
        ('{"version": true}', "unknown key 'version'; "),
        ('{"port": "8000"}', "port='8000': must be a whole number"),
        ('{"port": 8000.0}', "port=8000.0: must be a whole number"),
        ('{"port": true}', "port=True: must be a whole number"),
        ('{"ws_ping_interval": "20"}', "ws_ping_interval='20': must be a number"),
        ('{"server_header": 0}', "server_header=0: must be true or false"),
        ('{"host": null}', "host=None: must be a string"),
        ('{"app": 5}', "app=5: must be a string"),
        ('{"app": ["asgi_app.main:app"]}', "app=['asgi_app.main:app']: must be a string"),
        ('{"headers": "a:b"}', "headers='a:b': must be a list of strings"),
        ('{"headers": [1]}', "headers=1: must be a string"),
        ('{"headers": ["no colon"]}', "headers='no colon': must be NAME:VALUE"),
        ('{"lifespan": "maybe"}', "lifespan='maybe': 'maybe' is not one of 'auto', 'on', 'off'"),
        ('{"log_config": "missing.json"}', "log_config='missing.json': Path 'missing.json' does not exist"),
        ('{"port": 70000}', "port=70000: 70000 is not in the range "),
        ('{"port": -1}', "port=-1: -1 is not in the range "),
        ('{"workers": 0}', "workers=0: 0 is not in the range "),
        # The unknown key prevents a launcher without the bound from starting them all.
        ('{"workers": 513, "zzz": 0}', "workers=513: 513 is not in the range "),
        ("[]", "must contain one JSON object"),
        ('"app"', "must contain one JSON object"),
        ("", "cannot be read as JSON"),
        ('{"port": 8000,}', "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
    ],
)
def test_a_wrong_file_is_refused(content: str, line: str, tmp_path: Path) -> None:
    """One line says which key is wrong and what is right."""
    (tmp_path / "uvicorn.json").write_bytes(content.encode("latin-1"))
    assert refusal(tmp_path).startswith(f"uvicorn.json: {line}")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flag_out_of_range_is_refused(workers: int, tmp_path: Path) -> None:
    """A port that does not exist is told without a trace."""
    prepare(tmp_path, workers=workers)
    with launch(tmp_path, "--port", "70000") as server:
        assert server.exit_code() != 0, server.log()
        assert "70000" in server.log()
        assert "Traceback" not in server.log()


def test_every_log_level_of_uvicorn_may_stand_in_the_file(tmp_path: Path) -> None:
    """Uvicorn knows one level more than LOG_LEVEL."""
    prepare(tmp_path, log_level="trace")
    with launch(tmp_path, LOG_LEVEL="") as server:
        server.wait()
        assert "HTTP connection made" in server.log()


RAISES = "async def app(scope, receive, send):\n    raise RuntimeError('on startup')"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("source", "options", "error"),
    [
        pytest.param("", {"app": "nowhere:app"}, 'Could not import module "nowhere"', id="no module"),
        pytest.param("", {"app": "application:app"}, 'Attribute "app" not found', id="no attribute"),
        pytest.param("raise RuntimeError('on import')", {}, "RuntimeError: on import", id="import raises"),
        pytest.param("import nowhere", {}, "No module named 'nowhere'", id="import fails"),
        pytest.param(RAISES, {"lifespan": "on"}, "RuntimeError: on startup", id="lifespan raises"),
        pytest.param(APP, {"http2": True}, "ValueError: HTTP/2 requires", id="impossible options"),
    ],
)
def test_an_application_that_cannot_start_ends_the_server(
    source: str, options: dict, error: str, workers: int, tmp_path: Path
) -> None:
    """Exit code not 0 within seconds, the cause in the log, and no worker is started over and over."""
    prepare(tmp_path, source, workers=workers, **options)
    with launch(tmp_path) as server:
        assert server.exit_code() != 0, server.log()
        # A lifespan runs once in every worker; all else is tried once, before there is any.
        most = workers if source == RAISES else 1
        assert 1 <= server.log().count(error) <= most, server.log()


def test_without_a_file_the_command_line_is_enough(tmp_path: Path) -> None:
    """`python -m serving.uvicorn MODULE:APP` serves anywhere."""
    with launch(tmp_path, "asgi_app.main:app", "--workers", "1") as server:
        server.wait("/readyz")
        assert httpx2.get(server.url, trust_env=False).json()["service"] == "fastapi"


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_with_0(workers: int, tmp_path: Path) -> None:
    """Whatever the number of workers, a stop is no failure."""
    prepare(tmp_path)
    with launch(tmp_path, "--workers", str(workers)) as server:
        server.wait()
        assert f"workers={workers} (" in server.log()
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0, server.log()


def test_sighup_serves_new_code(tmp_path: Path) -> None:
    """With two workers the parent stays, and replaces both of them one by one."""
    prepare(tmp_path, workers=2)
    with launch(tmp_path) as server:
        server.wait()
        old, text = ask(server)
        assert (text, old != server.process.pid) == ("one", True)
        # A worker that boots only now would import the new code without being asked to.
        poll(lambda: server.log().count("Started server process") == 2, log=server.log)
        (tmp_path / "application.py").write_text(APP.replace("one", "two"))
        assert ask(server)[1] == "one"
        server.process.send_signal(signal.SIGHUP)
        # A worker is gone when the log says so, and the second one goes last.
        poll(lambda: server.log().count("Finished server process") == 2, log=server.log)
        assert {ask(server)[1] for _ in range(20)} == {"two"}
        assert server.process.poll() is None


BLOCKING = APP.replace(
    "    body =",
    "    import time\n\n    while scope['path'] == '/block':\n        time.sleep(0.1)\n    body =",
)


@pytest.mark.slow
def test_a_worker_with_a_blocked_event_loop_is_replaced(tmp_path: Path) -> None:
    """The stock supervisor would never see it; the other worker answers all the while."""
    prepare(tmp_path, BLOCKING, workers=2, timeout_worker_healthcheck=5)
    with launch(tmp_path) as server:
        server.wait()
        poll(lambda: server.log().count("Started server process") == 2, log=server.log)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(server.url + "/block", trust_env=False, timeout=30)
        assert "does not answer; starting another one" in server.log(), server.log()
        poll(lambda: server.log().count("Started server process") == 3, log=server.log)
        assert {ask(server)[1] for _ in range(20)} == {"one"}
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code() == 0


def test_a_single_process_with_a_blocked_event_loop_ends(tmp_path: Path) -> None:
    """It says what blocks it and exits with 1, so that the engine or supervisor restarts it."""
    prepare(tmp_path, BLOCKING, workers=1, timeout_worker_healthcheck=2)
    with launch(tmp_path) as server:
        server.wait()
        with pytest.raises(httpx2.TransportError):
            httpx2.get(server.url + "/block", trust_env=False, timeout=30)
        assert server.exit_code() == 1
        assert "event loop is blocked" in server.log()
        assert 'application.py", line' in server.log()


@pytest.mark.slow
def test_a_process_that_was_paused_goes_on(tmp_path: Path) -> None:
    """A single process that stood still for longer than the limit is not taken for a blocked one."""
    prepare(tmp_path, workers=1, timeout_worker_healthcheck=2)
    with launch(tmp_path) as server:
        server.wait()
        server.process.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(4)
        server.process.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2)
        assert ask(server)[1] == "one"


def test_a_stop_is_heard_while_a_worker_is_blocked(tmp_path: Path) -> None:
    """The parent passes SIGTERM on long before the timeout of its health check."""
    prepare(tmp_path, BLOCKING, workers=2)
    with launch(tmp_path) as server:
        server.wait()
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.get(server.url + "/block", trust_env=False, timeout=2)
        server.process.send_signal(signal.SIGTERM)
        poll(lambda: "Terminated child process" in server.log(), 5, log=server.log)
        # The blocked one hears nothing; the engine would end it after the grace period.
        pid = server.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        assert server.exit_code() == 0
