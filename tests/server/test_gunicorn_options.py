"""Gunicorn's own options and signals work with serving/ next to gunicorn.conf.py: docs/gunicorn.md."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, answers, free_port, poll, run
from tests.support.servers import Server, workers

pytestmark = pytest.mark.slow

APP = """
import os
from serving.wsgi import Service

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/slow":
        from gunicorn.dirty import get_dirty_client
        return [str(get_dirty_client().execute("slow:Slow", "add", 1, 2)).encode()]
    return [environ["REMOTE_ADDR"].encode() + os.environ.get("OPTION", "").encode()]

application = Service(app)
"""
SLOW = """
from gunicorn.dirty import DirtyApp

class Slow(DirtyApp):
    def init(self):
        pass

    def __call__(self, action, *values):
        return sum(values)

    def close(self):
        pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path


def start(folder: Path, *flags: str, **environ: str) -> Server:
    """A server of one worker with these flags."""
    return Server(
        "serving.gunicorn", *flags, "app", **{"WEB_CONCURRENCY": "1", "PYTHONPATH": str(folder)} | environ
    )


def test_sigttin_and_sigttou_change_the_number_of_workers(folder: Path) -> None:
    """One more, one fewer; SIGHUP returns to the number of the start."""
    with start(folder).wait() as server:
        for number, count in (
            (signal.SIGTTIN, 2),
            (signal.SIGTTIN, 3),
            (signal.SIGTTOU, 2),
            (signal.SIGHUP, 1),
        ):
            server.process.send_signal(number)
            poll(lambda count=count: len(workers(server)) == count, log=server.log)
        assert answers(server.url)


def test_gunicorn_cmd_args_beats_the_file(folder: Path) -> None:
    """As the documentation says: flags > GUNICORN_CMD_ARGS > file."""
    arguments = "--workers 3 --env OPTION=-from-the-variable"
    with start(folder, "--workers", "2", GUNICORN_CMD_ARGS=arguments).wait() as server:
        poll(lambda: len(workers(server)) == 2, log=server.log)
        assert httpx2.get(server.url, trust_env=False).text == "127.0.0.1-from-the-variable"


def test_an_inherited_descriptor_serves(folder: Path) -> None:
    """`--bind fd://N`, as some supervisors hand over a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        descriptor = listener.fileno()
        environ = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "WEB_CONCURRENCY": "1", "PORT": ""}
        with subprocess.Popen(
            [sys.executable, "-m", "serving.gunicorn", "--bind", f"fd://{descriptor}", "app"],
            cwd=ROOT,
            env=environ,
            pass_fds=[descriptor],
            stdout=subprocess.DEVNULL,
        ) as process:
            try:
                poll(lambda: answers(f"http://127.0.0.1:{port}/livez"))
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0


def test_the_proxy_protocol_names_the_client(folder: Path) -> None:
    """The address that a TCP load balancer sends before the request."""
    with start(folder, "--proxy-protocol", "auto").wait("/livez") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(b"PROXY TCP4 203.0.113.7 192.0.2.1 5000 80\r\n")
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b""
            while chunk := client.recv(4096):
                answer += chunk
        assert answer.endswith(b"203.0.113.7\r\n0\r\n\r\n"), answer


def test_statsd_gets_metrics(folder: Path) -> None:
    """Of requests that an application answers, and of the workers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        address = f"127.0.0.1:{receiver.getsockname()[1]}"
        with start(folder, "--statsd-host", address, "--statsd-prefix", "shop").wait() as server:
            assert answers(server.url)
            missing = {b"request.status.200:1|c", b"request.duration:", b"workers:1|g"}
            while missing:
                metrics = receiver.recv(4096)
                missing -= {name for name in missing if b"shop.gunicorn." + name in metrics}


def test_dirty_workers_answer(folder: Path) -> None:
    """Gunicorn's second pool of processes starts, answers, and ends with the server, though late."""
    flags = ("--dirty-app", "slow:Slow", "--dirty-workers", "1")
    with start(folder, *flags, TMPDIR=str(folder), REQUEST_TIMEOUT="1").wait() as server:
        poll(lambda: httpx2.get(server.url + "/slow", trust_env=False).text == "3", log=server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_code(15) == 0, server.log()
        assert "Traceback" not in server.log()


def test_reuse_port_and_a_pid_file(folder: Path) -> None:
    """Two servers share a port; each writes its process id, and removes the file at the end."""
    files = [folder / "one", folder / "two"]
    with start(folder, "--reuse-port", "--pid", str(files[0])).wait() as first:
        with start(folder, "--reuse-port", "--pid", str(files[1]), PORT=str(first.port)) as second:
            poll(lambda: workers(second), log=second.log)
            assert [int(file.read_text()) for file in files] == [first.process.pid, second.process.pid]
        assert not files[1].exists()
        assert answers(first.url)


def test_the_control_socket_answers(folder: Path) -> None:
    """It is off; this switches it on."""
    control = str(folder / "control")
    path = folder / "conf.py"
    lines = f"control_socket_disable = False\ncontrol_socket = {control!r}\n"
    path.write_text((ROOT / "gunicorn.conf.py").read_text() + lines)
    with start(folder, "--config", str(path)).wait() as server:
        poll(lambda: Path(control).exists(), log=server.log)
        said = run(sys.executable, "-m", "gunicorn.ctl.cli", "--socket", control, "-c", "show workers")
        assert str(min(workers(server))) in said


@pytest.mark.parametrize("flag", ["--check-config", "--print-config"])
def test_the_configuration_can_be_checked(folder: Path, flag: str) -> None:
    """Without a start, and with what serving/ replaces."""
    environ = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"}
    said = run(sys.executable, "-m", "serving.gunicorn", flag, "app", env=environ)
    if flag == "--print-config":
        assert re.search(r"^worker_class +=.*serving.gunicorn.worker.Worker", said, re.MULTILINE), said


def test_a_daemon_stops(folder: Path) -> None:
    """`--daemon` detaches; its process file leads to it."""
    file, port = folder / "pid", free_port()
    flags = ("--daemon", "--pid", str(file), "--error-logfile", str(folder / "log"))
    environ = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "PORT": str(port), "HOST": "127.0.0.1"}
    run(sys.executable, "-m", "serving.gunicorn", *flags, "app", env=environ)
    poll(lambda: answers(f"http://127.0.0.1:{port}/livez"))
    os.kill(int(file.read_text()), signal.SIGTERM)
    poll(lambda: not file.exists())


def test_the_page_names_every_setting() -> None:
    """A setting that a later Gunicorn adds must be looked at, and one that it removes must go."""
    from gunicorn.config import KNOWN_SETTINGS

    page = (ROOT / "docs/gunicorn.md").read_text().partition("## Signals")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", page, re.MULTILINE)))
    assert sorted(named) == sorted(setting.name for setting in KNOWN_SETTINGS)


def test_sigusr1_opens_log_files_again(folder: Path) -> None:
    """Ours write to the standard streams: the signal must not end anything."""
    with start(folder).wait() as server:
        before = poll(lambda: workers(server), log=server.log)
        server.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        assert answers(server.url)
        assert workers(server) == before
