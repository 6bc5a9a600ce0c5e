"""What the machine and the platform give: open files, process ids, sockets, ports."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, answers, free_port, poll
from tests.support.servers import Server, workers

APP = """
from serving.wsgi import Service

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["REMOTE_ADDR"].encode() or b"nobody"]

application = Service(app)
"""
# Runs a server as systemd does for a socket unit: with the socket as descriptor 3.
ACTIVATE = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "serving.gunicorn", "app"])
"""
PROC = Path("/proc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def cpu_seconds(pid: int) -> float:
    """What a process has computed."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_running_out_of_open_files_is_survived_and_logged_once(folder: Path) -> None:
    """The surplus waits, the worker lives and does not spin, one line names the limit; later it serves."""
    with Server("serving.gunicorn", "app", PYTHONPATH=str(folder), WEB_CONCURRENCY="1") as server:
        server.wait()
        (worker,) = poll(lambda: workers(server), log=server.log)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (60, 60))
        with ExitStack() as stack:
            for _ in range(120):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            poll(lambda: "New connections must wait: Too many open files" in server.log(), log=server.log)
            before = cpu_seconds(worker)
            time.sleep(3)
            assert cpu_seconds(worker) - before < 0.6
            assert server.log().count("New connections must wait") == 1
            assert "This process may open 60 files" in server.log()
        poll(lambda: answers(server.url), log=server.log)
        assert workers(server) == {worker}
        assert "Traceback" not in server.log()


@pytest.mark.slow
def test_a_full_worker_does_not_spin(folder: Path) -> None:
    """With as many connections as it may have, it waits for one to end."""
    flags = ("--worker-connections", "20", "--workers", "1")
    with Server("serving.gunicorn", *flags, "app", PYTHONPATH=str(folder)) as server:
        server.wait()
        (worker,) = poll(lambda: workers(server), log=server.log)
        with ExitStack() as stack:
            for _ in range(30):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            time.sleep(0.5)
            status = f"{worker}/status"
            switches = re.compile(r"^voluntary_ctxt_switches:\t(\d+)", re.MULTILINE)
            before = int(switches.search((PROC / status).read_text())[1])
            time.sleep(2)
            assert int(switches.search((PROC / status).read_text())[1]) - before < 200
        poll(lambda: answers(server.url), log=server.log)


def test_sigusr2_starts_a_second_server(folder: Path) -> None:
    """`python -m serving.gunicorn` is executed again as a module; the first one can then be stopped."""
    with Server("serving.gunicorn", "app", PYTHONPATH=str(folder), WEB_CONCURRENCY="1") as server:
        server.wait()
        server.process.send_signal(signal.SIGUSR2)
        children = PROC / f"{server.process.pid}/task/{server.process.pid}/children"

        def second() -> int:
            for child in map(int, children.read_text().split()):
                grandchildren = PROC / f"{child}/task/{child}/children"
                if grandchildren.exists() and grandchildren.read_text():
                    return child
            return 0

        pid = poll(second, log=server.log)
        try:
            poll(lambda: server.log().count("Booting worker") == 2, log=server.log)
            server.process.send_signal(signal.SIGTERM)
            assert server.exit_code() == 0, server.log()
            assert httpx2.get(server.url, trust_env=False).status_code == 200
            assert "Traceback" not in server.log()
        finally:
            os.kill(pid, signal.SIGQUIT)


def test_a_socket_of_systemd_is_used(folder: Path) -> None:
    """It is occupied by its own socket, which is no reason to refuse it."""
    port = free_port()
    environ = os.environ | {"PORT": str(port), "HOST": "127.0.0.1", "PYTHONPATH": f"{folder}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-c", ACTIVATE],
        cwd=ROOT,
        env=environ,
        pass_fds=[],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        poll(lambda: answers(f"http://127.0.0.1:{port}/livez"))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("host", "address"), [("", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("::", "[::]"), ("::1", "[::1]")]
)
def test_a_port_alone_listens_for_the_platform(folder: Path, host: str, address: str) -> None:
    """A platform that sets PORT connects from outside; HOST decides otherwise."""
    with Server("serving.gunicorn", "app", PYTHONPATH=str(folder), HOST=host) as server:
        poll(lambda: f"Listening at: http://{address}:{server.port} " in server.log(), log=server.log)


def test_an_ipv4_client_of_an_ipv6_socket_is_itself(folder: Path) -> None:
    """Its address arrives as ::ffff:127.0.0.1; it is trusted, and named, as 127.0.0.1."""
    with Server("serving.gunicorn", "app", PYTHONPATH=str(folder), HOST="::").wait() as server:
        assert httpx2.get(server.url, trust_env=False).text == "127.0.0.1"
        forwarded = {"X-Forwarded-For": "203.0.113.7:51234"}
        assert httpx2.get(server.url, trust_env=False, headers=forwarded).text == "203.0.113.7"


@pytest.mark.parametrize(("proxies", "client"), [("unix", b"203.0.113.7"), ("127.0.0.1", b"nobody")])
def test_a_proxy_on_a_unix_socket_can_be_trusted(folder: Path, proxies: str, client: bytes) -> None:
    """By the word `unix`; without it, its headers are as those of any stranger."""
    path = str(folder / "socket")
    command = ("serving.gunicorn", "--bind", f"unix:{path}", "app")
    with Server(*command, PYTHONPATH=str(folder), FORWARDED_ALLOW_IPS=proxies) as server:
        poll(lambda: workers(server), log=server.log)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(path)
            connection.sendall(
                b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"
            )
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
        assert answer.partition(b"\r\n\r\n")[2].split(b"\r\n")[1:2] == [client], answer


def test_more_workers_than_process_ids_are_refused(folder: Path) -> None:
    """The line has the arithmetic; without it, threads would fail to start under load."""
    site = folder / "sitecustomize.py"
    site.write_text("from serving import sizing\nsizing.limits = lambda: sizing.Limits(3, None, True, 60)\n")
    environ = {"PYTHONPATH": f"{folder}:{ROOT}"}
    with Server("serving.gunicorn", "app", WEB_CONCURRENCY="30", **environ) as server:
        assert server.exit_code() == 1
        expected = "WEB_CONCURRENCY=30: must be at most 4: each has 10 threads, and pids.max is 60"
        assert expected in server.log()
    with Server("serving.gunicorn", "app", WORKLOAD="io", **environ) as server:
        server.wait()
        assert "workers=2 (io: 3 CPU, at least 2 = 3, pids (60 - 16) / 22 = 2)" in server.log()


@pytest.mark.slow
def test_new_connections_go_to_the_worker_with_a_free_thread(folder: Path) -> None:
    """One of two workers has no free thread, and the other has one: nearly all requests are answered."""
    (folder / "app.py").write_text(APP.replace("    start", "    environ['wsgi.input'].read()\n    start"))
    unfinished = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"
    with Server("serving.gunicorn", "app", PYTHONPATH=str(folder), WEB_CONCURRENCY="2") as server:
        server.wait()
        poll(lambda: len(workers(server)) == 2, log=server.log)
        with ExitStack() as stack:
            for _ in range(11):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                client.sendall(unfinished)
                time.sleep(0.05)
            time.sleep(1)
            lost = 0
            for _ in range(40):
                try:
                    httpx2.get(server.url, trust_env=False, timeout=2)
                except httpx2.TimeoutException:
                    lost += 1
                time.sleep(0.05)
            # A worker looks now and then for what no other one has taken.
            assert lost <= 4
            assert httpx2.get(server.url + "/livez", trust_env=False, timeout=5).status_code == 200
