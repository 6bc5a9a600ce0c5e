"""Without an engine: the same servers, started and stopped by the same two commands."""

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from deploy.process.__main__ import LONGEST_SOCKET_PATH
from tests.support.commands import ROOT, answers, free_port, poll, run
from tests.support.processes import PROGRAMS, Processes, processes_of

# One of the services, and the variable that moves its port.
SERVICE = list(PROGRAMS)[-1]
VARIABLE = f"{SERVICE.upper()}_PORT"
# The groups that the images install.
BUILT = re.findall(r"requirements/([\w-]+)\.txt", (ROOT / "Dockerfile").read_text())


def test_up_says_why_and_where_and_is_harmless_when_repeated(processes: Processes) -> None:
    """The second `make up` names the same addresses and leaves every process as it was."""
    before = processes.control("status")
    again = processes.up()
    assert "Running local processes: RUNTIME=process says so." in again
    for service, url in processes.urls.items():
        assert f"{service} {url}\n" in again
    pids = r"(\w+) +RUNNING +pid (\d+)"
    assert re.findall(pids, before) == re.findall(pids, processes.control("status"))
    assert len(re.findall(pids, before)) == len(processes.urls)


def test_processes_listen_on_loopback_only(processes: Processes) -> None:
    """No socket of ours accepts a connection from another machine."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [local.split(":") for _, local, _, state, *_ in sockets if state == "0A"]
    for url in processes.urls.values():
        port = f"{int(url.rpartition(':')[2]):04X}"
        # 127.0.0.1, in the kernel's byte order
        assert [address for address, number in listening if number == port] == ["0100007F"], url


def test_logs_shows_every_service(processes: Processes) -> None:
    """`make logs` follows all of them; the reader ends it."""
    output = run(
        "timeout",
        "3",
        "make",
        "logs",
        "RUNTIME=process",
        cwd=processes.directory,
        env=processes.environ,
        expect=None,
    )
    for service in processes.urls:
        assert f".run/{service}.log" in output


@pytest.mark.slow
def test_down_leaves_nothing_behind_and_an_env_file_moves_a_port(tmp_path: Path) -> None:
    """.env reaches the services, a variable of the shell wins over it, and down stops everything twice."""
    stack = Processes(tmp_path / "copy")
    moved = free_port()
    stack.environ |= {"LOG_LEVEL": "debug"}
    stack.environ.pop(VARIABLE)
    (stack.directory / ".env").write_text(f"{VARIABLE}={moved}\nLOG_LEVEL=loud\nWEB_CONCURRENCY=3\n")
    try:
        output = stack.up()
        for service, url in (stack.urls | {SERVICE: f"http://127.0.0.1:{moved}"}).items():
            assert f"{service} {url}\n" in output
            assert answers(url)
        poll(lambda: "workers=3 (WEB_CONCURRENCY)" in stack.log(SERVICE), log=stack.log)
    finally:
        stack.down()
    poll(lambda: not processes_of(stack.directory))
    assert (stack.directory / ".data/db.sqlite3").exists()
    stack.down()


@pytest.mark.slow
def test_a_failing_start_is_told_and_leaves_nothing_running(tmp_path: Path) -> None:
    """An occupied port: make fails, shows the line that names it, and stops the others."""
    stack = Processes(tmp_path / "copy")
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        stack.environ[VARIABLE] = str(port)
        output = run("make", "up", "RUNTIME=process", cwd=stack.directory, env=stack.environ, expect=2)
    assert f"HOST and PORT='127.0.0.1:{port}': must be free to listen on" in output
    poll(lambda: not processes_of(stack.directory))


@pytest.mark.slow
def test_processes_start_again_after_a_crash(tmp_path: Path) -> None:
    """SIGKILL to all of them at once leaves a socket and a pid file behind; `make up` does not mind."""
    stack = Processes(tmp_path / "copy")
    try:
        stack.up()
        for pid in processes_of(stack.directory):
            os.kill(pid, signal.SIGKILL)
        poll(lambda: not processes_of(stack.directory))
        assert (stack.directory / ".run/supervisor.sock").exists()
        assert (stack.directory / ".run/supervisord.pid").exists()
        stack.up()
        for url in stack.urls.values():
            assert answers(url + "/readyz"), stack.log()
    finally:
        stack.down()


def test_a_machine_without_a_fitting_python_is_told_what_to_install(tmp_path: Path) -> None:
    """One line, and no half-made environment."""
    stack = Processes(tmp_path / "copy")
    (stack.directory / ".venv").unlink()
    (tmp_path / "bin").mkdir()
    for tool in ("make", "sh", "awk", "test", "mkdir", "docker"):
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    bare = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "PYENV_ROOT": "/nonexistent"}
    output = run("make", "up", "RUNTIME=process", cwd=stack.directory, env=bare, expect=2)
    assert "No Python 3.12 or newer" in output
    assert not (stack.directory / ".venv").exists()


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """One line names the socket and the limit, before anything starts."""
    # Several folders, because the name of the last one is the project's.
    stack = Processes(tmp_path.joinpath(*["x" * 40] * 3))
    socket_path = stack.directory / ".run/supervisor.sock"
    allowed = f"must be at most {LONGEST_SOCKET_PATH} bytes"
    assert f"the path is too long: {socket_path} {allowed}\n" in stack.make("up", expect=2)
    assert not socket_path.parent.exists()


def test_an_unknown_runtime_is_refused() -> None:
    """The message names the variable, the value and what is allowed."""
    output = run("make", "up", "RUNTIME=podman", expect=2)
    assert "RUNTIME='podman': must be docker or process" in output


@pytest.mark.slow
def test_the_environment_is_built_from_the_lock_alone(tmp_path: Path) -> None:
    """On a machine with nothing installed, make finds a Python and installs exactly the lock."""
    stack = Processes(tmp_path / "copy")
    (stack.directory / ".venv").unlink()
    stack.make(".venv/up")
    program = stack.directory / ".venv/bin/python"
    freeze = run(program, "-m", "pip", "freeze", "--disable-pip-version-check")
    installed = {line.lower().replace("_", "-") for line in freeze.split()}
    locked = {
        (f"{name}=={version}", condition)
        for group in ("process", *BUILT)
        for name, version, condition in re.findall(
            r"^([\w.-]+)(?:\[\w+\])?==(\S+)( ;.*)? \\$",
            (stack.directory / f"requirements/{group}.txt").read_text(),
            re.MULTILINE,
        )
    }
    assert {pin for pin, condition in locked if not condition} <= installed <= {pin for pin, _ in locked}
