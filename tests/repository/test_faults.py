"""What a fault costs under load: no wrong response, few lost requests, and no manual action.

`make chaos` (CHAOS=1) injects every fault into every service, with the timeouts that the product has,
and writes the table of docs/reliability.md. A plain run takes one service of those that are alike,
and shorter timeouts.
"""

import datetime
import json
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psycopg
import pytest

from tests.support.clients import Clients
from tests.support.commands import ROOT, answers, poll, run
from tests.support.containers import (
    PUMP,
    Containers,
    children,
    python_image,
    server_process,
    up_until_teardown,
)
from tests.support.postgres import Postgres

pytestmark = pytest.mark.alone

CHAOS = os.environ.get("CHAOS") == "1"
PAGE = ROOT / "docs/reliability.md"
# Two that read and two that write, each with a moment to think.
CLIENTS = 4
THINK = 0.02
# Seconds until a service must have recovered. The servers look for hung workers after 30 s, and the
# edge holds a request for up to 57 s while no replica is ready.
PATIENCE = 120
# Good answers in a row, of every client, that end a fault.
STREAK = 10

COMPOSE = (ROOT / "docker-compose.yml").read_text()
SERVICES = [name for name in ("django", "flask", "fastapi") if f"\n  {name}:\n" in COMPOSE]
# FastAPI under Gunicorn: the same service, from another target of the Dockerfile.
HYBRID = "fastapi-hybrid"
# Uvicorn with a parent process, which it has on two CPUs.
PAIR = "fastapi x 2"


class Result(NamedTuple):
    """One request: when it began and ended, and how; "" is a right answer."""

    client: int
    method: str
    begin: float
    end: float
    outcome: str


class Load(Clients):
    """Clients that read from and write to one service, and look at every answer."""

    def __init__(self, stack: Containers, service: str) -> None:
        super().__init__()
        self.stack, self.service, self.url = stack, service, stack.urls[service]
        self.results: list[Result] = []
        self.wrong: list[str] = []
        self.accepted: list[str] = []
        self.note = ""
        self.form: dict[str, str] = {}
        self.cookies: dict[str, str] = {}
        if service == "django":
            page = httpx2.get(self.url, trust_env=False)
            token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
            self.form = {"author": "chaos", "csrfmiddlewaretoken": token}
            self.cookies = {"cookie": f"csrftoken={page.cookies['csrftoken']}"}
        self.threads = [threading.Thread(target=self._run, args=[number]) for number in range(CLIENTS)]

    def _run(self, number: int) -> None:
        method, ask = (("GET", self._read), ("POST", self._write))[number % 2]
        with httpx2.Client(base_url=self.url, trust_env=False, timeout=PATIENCE) as client:
            while not self.done.wait(THINK):
                begin = time.monotonic()
                try:
                    outcome = ask(client, f"{number}-{begin}")
                except httpx2.TimeoutException:
                    outcome = "timeout"
                except httpx2.TransportError:
                    outcome = "connection lost"
                self.results.append(Result(number, method, begin, time.monotonic(), outcome))

    def _read(self, client: httpx2.Client, _: str) -> str:
        answer = client.get("/")
        if self.service == "django":
            whole = answer.text.rstrip().endswith("</html>") and "csrfmiddlewaretoken" in answer.text
            return self._judge(answer, 200, whole)
        return self._judge(answer, 200, f'"service":"{self.service}"' in answer.text)

    def _write(self, client: httpx2.Client, mark: str) -> str:
        if self.service == "django":
            answer = client.post("/", data=self.form | {"message": mark}, headers=self.cookies)
            outcome = self._judge(answer, 302, answer.headers.get("location") == "/")
            self.accepted += [] if outcome else [mark]
            return outcome
        answer = client.post("/echo", json=mark)
        return self._judge(answer, 200, answer.text.strip() == f'{{"echo":"{mark}"}}')

    def _judge(self, answer: httpx2.Response, status: int, right: bool) -> str:
        """A right answer's "", or the status of a clean refusal; everything else is noted as wrong."""
        if answer.status_code == status and right:
            return ""
        # The edge's problem document, or Django's own page where the database is away.
        clean = answer.text == "<h1>Service Unavailable</h1>" and "retry-after" in answer.headers
        with suppress(ValueError, KeyError, TypeError):
            problem = answer.headers["content-type"] == "application/problem+json"
            clean = clean or (problem and answer.json()["status"] == answer.status_code)
        if answer.status_code not in (502, 503, 504) or not clean:
            self.wrong.append(f"{answer.request.method} {answer.status_code} {answer.text[:500]!r}")
        return str(answer.status_code)

    def more(self, count: int, method: str = "", lost: bool = False) -> None:
        """Wait until so many requests more were answered rightly, or were lost."""

        def seen() -> int:
            done = [result for result in list(self.results) if result.method.startswith(method)]
            return sum(bool(result.outcome) == lost for result in done)

        goal = seen() + count
        poll(lambda: seen() >= goal, PATIENCE, self._log)

    def refused(self) -> bool:
        """Whether a request got 503: a server that is not ready, or the edge after holding it."""
        return not self.lost().keys().isdisjoint({"GET 503", "POST 503"})

    def whole(self) -> None:
        """Wait until every client has got a streak of right answers to what it asked from now on."""
        now = time.monotonic()

        def good() -> bool:
            asked = [result for result in list(self.results) if result.begin > now]
            for number in range(CLIENTS):
                last = [result.outcome for result in asked if result.client == number][-STREAK:]
                if len(last) < STREAK or any(last):
                    return False
            return True

        poll(good, PATIENCE, self._log)

    def _log(self) -> str:
        return f"{self.lost()}\n{self.stack.log('edge')}\n{self.stack.log(self.service)}"

    def lost(self) -> Counter[str]:
        """How many requests were lost, by method and outcome."""
        return Counter(f"{result.method} {result.outcome}" for result in list(self.results) if result.outcome)

    def stored(self) -> list[str]:
        """In Django's database: what these clients wrote."""
        dump = ("python", "-m", "wsgi_app.django_site", "dumpdata", "guestbook.entry")
        return [entry["fields"]["message"] for entry in json.loads(self.stack.exec("django", *dump))]


@contextmanager
def broken_by(stack: Containers, breaks: str, repairs: str = "", user: str = "10001") -> Iterator[None]:
    """Python code beside Django, with its volumes, breaks something; other code repairs it at the end."""
    program = f"import sys\n{breaks}\nprint('broken', flush=True)\nsys.stdin.read()\n{repairs}\n"
    command = ("docker", "exec", "--interactive", "--user", user, stack.container("keeper"), "python", "-c")
    with subprocess.Popen(
        [*command, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "broken\n"
        yield


def inject(stack: Containers, service: str, code: str) -> None:
    """Have the main thread of one worker run Python code, as a mistake in the application would."""
    pid = [*children(stack, service), server_process(stack, service)["Pid"][0]][0]
    program = (
        "import os, sys\n"
        "if not hasattr(sys, 'remote_exec'): sys.exit(2)\n"
        "with open('/tmp/fault.py', 'w') as file: file.write(sys.argv[2])\n"
        "os.chmod('/tmp/fault.py', 0o644)\n"
        "sys.remote_exec(int(sys.argv[1]), '/tmp/fault.py')\n"
    )
    command = ("docker", "exec", "--privileged", "--user", "0", stack.container(service), "python", "-c")
    result = subprocess.run([*command, program, str(pid), code], check=False, capture_output=True, text=True)
    if result.returncode == 2:
        pytest.skip("injecting code takes a Python of 3.14 or newer in the image")
    assert result.returncode == 0, result.stderr


def kill(stack: Containers, *services: str) -> None:
    """SIGKILL to the server of each, from outside: the engine restarts nothing that it killed itself."""
    pids = [process_tree(stack, service)[0] for service in services]
    program = "import os, sys; [os.kill(int(pid), 9) for pid in sys.argv[1:]]"
    outside = ("docker", "run", "--rm", "--pid", "host", "--user", "0")
    run(*outside, python_image(), "python", "-c", program, *pids)


def pause(container: str) -> None:
    """Freeze it; again, when the kernel could not because a process was just being started in it."""
    poll(lambda: "unable to freeze" not in run("docker", "pause", container, expect=None))
    assert run("docker", "inspect", "--format", "{{.State.Paused}}", container).strip() == "true"


def process_tree(stack: Containers, service: str) -> tuple[str, set[str]]:
    """The machine's pids of the server, which the container's init started, and of its workers."""
    init = stack.inspect(service, "{{.State.Pid}}")
    table = run("docker", "top", stack.container(service), "-eo", "pid,ppid,args", expect=None).splitlines()
    rows = [line.split(maxsplit=2) for line in table[1:]]
    server = next((pid for pid, parent, _ in rows if parent == init and init != "0"), "")
    return server, {row[0] for row in rows if row[1] == server and "resource_tracker" not in row[2]}


def workers(stack: Containers, service: str) -> set[str]:
    """The machine's pids of what serves: the workers, or the server itself where it has none."""
    server, spawned = process_tree(stack, service)
    return spawned or {server} - {""}


def replaced(stack: Containers, service: str, before: set[str]) -> None:
    """Wait until as many workers serve as before, and one of them is new."""

    def complete() -> bool:
        now = workers(stack, service)
        return len(now) == len(before) and now != before

    poll(complete, PATIENCE, lambda: stack.log(service))


# The faults. Each returns when the service has recovered; or, where the test has to remove the
# cause, the moment when it did.


def worker_killed(stack: Containers, service: str, _: Load) -> None:
    """SIGKILL to one worker process."""
    before = workers(stack, service)
    pid = children(stack, service)[0]
    stack.exec(service, "python", "-c", f"import os; os.kill({pid}, 9)")
    replaced(stack, service, before)


def main_loop_busy(stack: Containers, service: str, _: Load) -> None:
    """An endless loop in the thread that accepts or in the event loop."""
    before = workers(stack, service)
    inject(stack, service, "while True: pass")
    replaced(stack, service, before)


def interpreter_held(stack: Containers, service: str, _: Load) -> None:
    """Native code that never gives the interpreter back: no other thread of the process runs."""
    before = workers(stack, service)
    inject(stack, service, "import re; re.match('(a+)+$', 'a' * 64 + 'b')")
    replaced(stack, service, before)


def thread_busy(stack: Containers, service: str, load: Load) -> float:
    """A thread that computes for some seconds beside those that answer."""
    code = (
        "import threading, time\n"
        "def compute(end=time.monotonic() + 5):\n"
        "    while time.monotonic() < end: pass\n"
        "threading.Thread(target=compute).start()\n"
    )
    inject(stack, service, code)
    load.more(100)
    return time.monotonic()


def out_of_memory(stack: Containers, service: str, _: Load) -> None:
    """A worker that takes memory until the container's limit."""
    before = workers(stack, service)
    inject(stack, service, "hoard = []\nwhile True: hoard.append(b'x' * 2**24)")
    replaced(stack, service, before)


def leak(stack: Containers, service: str, _: Load) -> None:
    """A worker that loses 20 MiB a second, not long before it is recycled."""
    before = workers(stack, service)
    code = (
        "import sys, threading, time\n"
        "def leak(hoard=[]):\n"
        "    while True: hoard.append(b'x' * 2**20); time.sleep(0.05)\n"
        "threading.Thread(target=leak, daemon=True).start()\n"
        "frame = sys._getframe()\n"
        "while not hasattr(frame.f_locals.get('self'), 'max_requests'): frame = frame.f_back\n"
        "worker = frame.f_locals['self']\n"
        "assert 9_000 <= worker.max_requests <= 11_000\n"
        "worker.nr = worker.max_requests - 100\n"
    )
    inject(stack, service, code)
    replaced(stack, service, before)
    assert "Autorestarting worker" in stack.log(service)


def container_killed(stack: Containers, service: str, _: Load) -> None:
    """SIGKILL to the process that the container's init started."""
    before = workers(stack, service)
    kill(stack, service)
    replaced(stack, service, before)


def container_paused(stack: Containers, service: str, load: Load) -> float:
    """The only replica stands still until the edge has given up on what it had."""
    container = stack.container(service)
    pause(container)
    try:
        load.more(CLIENTS, lost=True)
    finally:
        run("docker", "unpause", container)
    return time.monotonic()


def replica_paused(stack: Containers, service: str, load: Load) -> float:
    """One of two replicas stands still; the other one goes on."""
    names = [f"{stack.project}-{service}-{number}" for number in (1, 2)]
    poll(lambda: all(run("docker", "logs", "--tail", "50", name).count('" 200 ') > 20 for name in names))
    pause(names[0])
    try:
        load.more(200)
    finally:
        run("docker", "unpause", names[0])
    return time.monotonic()


def write_in_vain(load: Load) -> None:
    """Clients write, which may fail; then they read, which does not."""
    load.more(CLIENTS, "POST", lost=True)
    load.more(20, "GET")


def disk_full(stack: Containers, service: str, load: Load) -> float:
    """Not a byte left on the data volume: reading goes on."""
    fill = (
        "with open('/data/filler', 'wb', buffering=0) as file:\n"
        "    try:\n"
        "        while file.write(b'x' * 4096): pass\n"
        "    except OSError: pass\n"
    )
    with broken_by(stack, fill, "import os; os.unlink('/data/filler')"):
        write_in_vain(load)
    return time.monotonic()


def database_locked(stack: Containers, service: str, load: Load) -> float:
    """Another process holds SQLite's write lock: reading goes on."""
    lock = (
        "import sqlite3\n"
        "connection = sqlite3.connect('/data/db.sqlite3', isolation_level=None, timeout=30)\n"
        "connection.execute('BEGIN EXCLUSIVE')"
    )
    with broken_by(stack, lock):
        write_in_vain(load)
    return time.monotonic()


def manifest_truncated(stack: Containers, service: str, load: Load) -> float:
    """Half a staticfiles.json: what runs goes on, and a server that starts with it gets no request."""
    cut = (
        "path = '/static/staticfiles.json'\n"
        "whole = open(path).read()\n"
        "open(path, 'w').write(whole[:len(whole) // 2])"
    )
    with broken_by(stack, cut, "open(path, 'w').write(whole)", user="0"):
        load.more(50)
        assert load.lost() == {}
        kill(stack, service)
        poll(lambda: "not ready: static files" in stack.log(service), PATIENCE)
        poll(load.refused, PATIENCE)
    return time.monotonic()


def everything_killed(stack: Containers, service: str, _: Load) -> None:
    """SIGKILL to every server at the same time, the edge too; a pid file is left behind."""
    names = ["edge", *stack.urls]
    before = {name: stack.inspect(name, "{{.State.Pid}}") for name in names}
    if service == "django":
        pid = stack.exec(service, "cat", "/data/gunicorn.pid").strip()
        assert [pid] == server_process(stack, service)["Pid"]
    kill(stack, *names)
    for name in names:
        poll(lambda name=name: stack.inspect(name, "{{.State.Pid}}") not in (before[name], "0"), PATIENCE)


@contextmanager
def nothing_else_fails(stack: Containers, service: str, load: Load) -> Iterator[None]:
    """For ten seconds after the first request that got 503: what needs no database goes on at the edge."""
    url = load.url
    style = re.search(r'href="(/static/[^"]+[.]css)"', httpx2.get(url, trust_env=False).text)[1]
    yield
    # The first requests may wait for the database until it is known to be away.
    poll(load.refused, PATIENCE)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        for path, status in (("/livez", 200), (style, 200), ("/", 503)):
            answer = httpx2.get(url + path, trust_env=False, timeout=2)
            assert answer.status_code == status, (path, answer.text)
        time.sleep(0.2)
    assert stack.health(service) == "healthy"


def postgresql_away(stack: Containers, service: str, load: Load) -> float:
    """PostgreSQL ends as in a crash, and starts again ten seconds later."""
    try:
        with nothing_else_fails(stack, service, load):
            stack.database.stop(signal.SIGQUIT)
    finally:
        stack.database.start()
    return time.monotonic()


def failover(stack: Containers, service: str, load: Load) -> float:
    """PostgreSQL ends every connection and its queries, and starts again immediately."""
    stack.database.stop(signal.SIGINT)
    stack.database.start()
    return time.monotonic()


def no_connection_left(stack: Containers, service: str, load: Load) -> float:
    """For ten seconds, another program has every connection that PostgreSQL allows."""
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    others += " WHERE backend_type = 'client backend' AND pid <> ALL(%s)"
    with ExitStack() as closed:
        taken: list[psycopg.Connection] = []
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                connection = psycopg.connect(stack.database.url, autocommit=True)
                taken.append(closed.enter_context(connection))
            except psycopg.OperationalError:  # too many clients
                taken[0].execute(others, [[it.info.backend_pid for it in taken]])
        assert "too many clients" in stack.log(service)
    return time.monotonic()


def database_hung(stack: Containers, service: str, load: Load) -> float:
    """Connections to PostgreSQL are accepted and never answered: a process in between stands still."""
    try:
        with nothing_else_fails(stack, service, load):
            pause(stack.container("relay"))
        assert "not ready: database: no answer within" in stack.log(service)
    finally:
        run("docker", "unpause", stack.container("relay"))
    return time.monotonic()


def request_of_death(stack: Containers, service: str, load: Load) -> None:
    """A request that ends its worker: the edge does not repeat a POST, and Go repeats a GET."""
    before, ended = workers(stack, service), {}
    for method in ("GET", "POST"):
        answer = httpx2.request(method, f"{load.url}/death", trust_env=False, timeout=PATIENCE)
        assert answer.status_code == 502
        ended[method] = stack.log(service).count(f"{method} ends a worker")
        poll(lambda: len(workers(stack, service)) == len(before), PATIENCE, lambda: stack.log(service))
        load.more(50)
    assert ended["POST"] == 1
    # One for each connection to a worker that was open before, and one for a new connection.
    assert 1 <= ended["GET"] <= len(before) + 1
    load.note = f"; the GET ended {ended['GET']} workers, the POST {ended['POST']}"


def tmp_full(stack: Containers, service: str, load: Load) -> None:
    """Not a byte is left in /tmp: the service goes on, and a stop drains and finishes all requests."""
    program = (
        "with open('/tmp/filler', 'wb', buffering=0) as file:\n"
        "    try:\n"
        "        while file.write(b'x' * 4096): pass\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    assert stack.exec(service, "python", "-c", program) == "No space left on device\n"
    load.more(100)
    assert stack.stop(service) == 0
    run("docker", "start", stack.container(service))
    poll(lambda: stack.health(service) == "healthy", PATIENCE, lambda: stack.log(service))


class Fault(NamedTuple):
    """A fault, the services that it differs for, and what it may cost."""

    inject: Callable[[Any, str, Load], float | None]
    # The first of them in a plain run, or as many as `plain` says.
    services: tuple[str, ...]
    plain: int = 1
    # How many may get 502 or 504: those that the dead worker had; None: as long as the service is away.
    most: int | None = None
    # Which of them may be lost.
    methods: tuple[str, ...] = ("GET", "POST")
    replicas: int = 1
    # Whether a server dies: that breaks off a response that has begun.
    dies: bool = True


FAULTS = (
    Fault(worker_killed, ("flask", HYBRID, "django", PAIR), plain=2, most=CLIENTS),
    Fault(main_loop_busy, ("fastapi", HYBRID, "flask", PAIR), plain=2),
    Fault(interpreter_held, ("flask", HYBRID, PAIR)),
    Fault(thread_busy, ("flask", "django"), most=0, dies=False),
    Fault(out_of_memory, ("flask", "fastapi", HYBRID, "django"), plain=2),
    Fault(leak, ("flask", "django"), most=0, dies=False),
    Fault(container_killed, ("fastapi", "django", "flask", HYBRID)),
    Fault(container_paused, ("fastapi", "flask"), dies=False),
    Fault(replica_paused, ("flask", "fastapi"), most=CLIENTS, replicas=2, dies=False),
    Fault(disk_full, ("django",), methods=("POST",), dies=False),
    Fault(database_locked, ("django",), methods=("POST",), dies=False),
    Fault(manifest_truncated, ("django",)),
    Fault(tmp_full, ("django", "flask", "fastapi"), most=0, dies=False),
    Fault(request_of_death, ("flask", PAIR), most=2 * CLIENTS),
    Fault(postgresql_away, ("django",), dies=False),
    Fault(database_hung, ("django",), dies=False),
    Fault(failover, ("django",), dies=False),
    Fault(no_connection_left, ("django",), dies=False),
    Fault(everything_killed, ("django", "fastapi")),
)


def cases() -> Iterator[Any]:
    """Each fault for each service that there is; in a plain run, for the first ones."""
    for fault in FAULTS:
        services = [name for name in fault.services if re.split("[ -]", name)[0] in SERVICES]
        for service in services if CHAOS else services[: fault.plain]:
            yield pytest.param(fault, service, id=f"{fault.inject.__name__}-{service}")


CASES = [*cases()]


# Around an application: a path that ends the worker.
DEADLY = """
import importlib, inspect, os

module, _, name = os.environ["APPLICATION"].partition(":")
app = getattr(importlib.import_module(module), name or "application")

def check(method, path):
    if path == "/death":
        os.write(2, f"{method} ends a worker\\n".encode())
        os._exit(1)

def wsgi(environ, start_response):
    check(environ["REQUEST_METHOD"], environ["PATH_INFO"])
    return app(environ, start_response)

async def asgi(scope, receive, send):
    check(scope.get("method"), scope.get("path"))
    await app(scope, receive, send)

application = asgi if inspect.iscoroutinefunction(type(app).__call__) else wsgi
"""
MORTAL = {
    "flask": ("serving.gunicorn", "wsgi_app.flask_site"),
    "fastapi": ("serving.uvicorn", "asgi_app.main:app"),
}
# Between Django and PostgreSQL: passes bytes on, from TCP to the server's socket.
DATABASE_RELAY = f"""{PUMP}
async def relay(reader, writer):
    database = await asyncio.open_unix_connection(sys.argv[1])
    await asyncio.gather(pump(reader, database[1]), pump(database[0], writer))

async def main():
    await (await asyncio.start_server(relay, port=5432)).serve_forever()

asyncio.run(main())
"""


class Faulty(Containers):
    """The stack with a small data volume, and a container next to it that reaches the volumes.

    With a database, Django uses PostgreSQL; `relayed`, through a process in between.
    """

    def __init__(
        self, directory: Path, database: Postgres | None = None, relayed: bool = False, **environ: str
    ) -> None:
        self.database = database
        limits = {"WEB_CONCURRENCY": "${WORKERS:-}"}
        if not CHAOS:
            limits |= {"GUNICORN_CMD_ARGS": "--timeout 10", "UVICORN_TIMEOUT_WORKER_HEALTHCHECK": "10"}
            environ |= {"REQUEST_TIMEOUT": "5"}
        services: dict[str, Any] = {name: {"environment": {**limits}} for name in SERVICES}
        override = {"services": services}
        code = directory / "code"
        code.mkdir()
        code.chmod(0o755)
        (code / "deadly.py").write_text(DEADLY)
        for name, (program, application) in MORTAL.items():
            if name in services and "FASTAPI_TARGET" not in environ:
                services[name]["command"] = ["python", "-m", program, "deadly:application"]
                services[name]["environment"] |= {"PYTHONPATH": "/code", "APPLICATION": application}
                services[name]["volumes"] = [f"{code}:/code"]
        if "django" in services:
            mode = "size=16m,uid=10001,gid=10001,mode=0700"
            small = {"type": "tmpfs", "device": "tmpfs", "o": mode}
            override["volumes"] = {"data": {"driver_opts": small}, "static": {}}
            # A volume in memory exists only while a container uses it.
            services["keeper"] = {
                "image": python_image(),
                "init": True,
                "command": ["sleep", "infinity"],
                "volumes": ["data:/data", "static:/static"],
            }
            services["migrate"] = {
                "depends_on": {"keeper": {"condition": "service_started"}},
                "environment": {},
            }
            services["django"]["volumes"] = ["static:/app/wsgi_app/django_site/staticfiles"]
            flags = f"{limits.get('GUNICORN_CMD_ARGS', '')} --pid /data/gunicorn.pid"
            services["django"]["environment"] |= {"GUNICORN_CMD_ARGS": flags}
        if database:
            mount = f"{database.directory}:/postgres"
            url = f"postgres://app@%2Fpostgres:{database.port}/postgres"
            if relayed:
                url = "postgres://app@relay/postgres"
                program = ["python", "-c", DATABASE_RELAY, f"/postgres/.s.PGSQL.{database.port}"]
                listening = "import socket; socket.create_connection(('127.0.0.1', 5432))"
                services["relay"] = {
                    "image": python_image(),
                    "init": True,
                    "command": program,
                    "networks": ["django-data"],
                    "volumes": [mount],
                    "healthcheck": {"test": ["CMD", "python", "-c", listening], "start_interval": "1s"}
                    | {"start_period": "60s"},
                }
                services["migrate"]["depends_on"] |= {"relay": {"condition": "service_healthy"}}
            services["migrate"]["volumes"] = []
            for service in (services["migrate"], services["django"]):
                service["volumes"].append(mount)
                service["environment"]["DATABASE_URL"] = url
        file = directory / "faults.yml"
        file.write_text(json.dumps(override))
        super().__init__(file, **environ)

    def adjust(self, service: str, *flags: str, workers: str = "") -> None:
        """Start the service again if it has another number of workers now, or as Compose's flags say."""
        self.environ["WORKERS"] = workers
        self.compose("up", "--detach", "--no-deps", "--no-build", *flags, service)
        poll(lambda: self.health(service) == "healthy", PATIENCE, lambda: self.log(service))


@pytest.fixture(scope="module")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """Every service, to be broken; each test leaves it whole."""
    yield from up_until_teardown(Faulty(tmp_path_factory.mktemp("faults")))


@pytest.fixture(scope="module")
def hybrid_stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """The edge and FastAPI alone, in Uvicorn workers that Gunicorn manages."""
    stack = Faulty(tmp_path_factory.mktemp("hybrid"), FASTAPI_TARGET=HYBRID)
    yield from up_until_teardown(stack, "fastapi")


@pytest.fixture(scope="module")
def on_postgresql(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """Django alone, with a PostgreSQL server of its own."""
    with Postgres() as database:
        stack = Faulty(tmp_path_factory.mktemp("postgresql"), database)
        yield from up_until_teardown(stack, "django")


@pytest.fixture
def relayed_postgresql(engine: None, tmp_path: Path) -> Iterator[Faulty]:
    """The same, with a process between the two that can stand still."""
    with Postgres() as database:
        stack = Faulty(tmp_path, database, relayed=True)
        yield from up_until_teardown(stack, "django")


PLACES = dict.fromkeys((postgresql_away, failover, no_connection_left), "on_postgresql")
PLACES[database_hung] = "relayed_postgresql"
HEAD = ("| fault | service | requests | lost | how | recovered after |", "|---|---|---:|---:|---|---:|")


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The table, to be filled; it is shown, and `make chaos` writes it to the page when nothing failed."""
    rows: list[str] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *HEAD, *rows, sep="\n")
    if CHAOS and len(rows) == len(CASES):
        cpuinfo = Path("/proc/cpuinfo").read_text()
        model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
        machine = f"{os.cpu_count()} CPUs, {model[1] if model else platform.machine()}"
        machine += f", load average {os.getloadavg()[2]:.0f}"
        table = "\n".join((f"{datetime.date.today()}, {machine}.", "", *HEAD, *rows))
        page = re.sub(r"^\d{4}-\d\d-\d\d, .*?\|$(?!\n\|)", table, PAGE.read_text(), flags=re.M | re.S)
        PAGE.write_text(page)


@pytest.mark.parametrize(("fault", "service"), CASES)
def test_a_fault_costs_little_and_passes(
    fault: Fault, service: str, request: pytest.FixtureRequest, rows: list[str]
) -> None:
    """No response is wrong, lost requests get an error page, and confirmed entries are kept."""
    fixture = "hybrid_stack" if service == HYBRID else "stack"
    fixture = PLACES.get(fault.inject, fixture)
    stack: Faulty = request.getfixturevalue(fixture)
    name, _, count = service.removesuffix("-hybrid").partition(" x ")
    with ExitStack() as after:
        if count:
            after.callback(stack.adjust, name)
            stack.adjust(name, workers=count)
        if fault.replicas > 1:
            after.callback(stack.adjust, name, "--no-recreate", "--scale", f"{name}=1")
            stack.adjust(name, "--no-recreate", "--scale", f"{name}={fault.replicas}")
        poll(lambda: answers(stack.urls[name]), PATIENCE, lambda: stack.log(name))
        load = after.enter_context(Load(stack, name))
        load.whole()
        load.results.clear()
        begin = time.monotonic()
        ended = fault.inject(stack, name, load)
        mended = time.monotonic()
        load.whole()
    lost = load.lost()
    assert load.wrong == []
    dead = "|connection lost" if fault.dies else ""
    clean = re.compile(rf"({'|'.join(fault.methods)}) (50[234]{dead})")
    assert [kind for kind in lost if not clean.fullmatch(kind)] == [], lost
    if fault.most is not None:
        assert sum(number for kind, number in lost.items() if not kind.endswith("503")) <= fault.most, lost
    if name == "django":
        stored = Counter(load.stored())
        assert [mark for mark in load.accepted if stored[mark] != 1] == []
        assert max(stored.values()) == 1
    since = ended or begin
    last = max((result.end for result in load.results if result.outcome), default=since)
    seconds = max(0, last - since, 0 if ended else mended - since)
    how = ", ".join(f"{number} {kind}" for kind, number in sorted(lost.items())) or "nothing"
    label = fault.inject.__name__.replace("_", " ")
    which = f"`{service}`" if not count else f"`{name}` x {count}"
    how += load.note
    rows.append(f"| {label} | {which} | {len(load.results)} | {lost.total()} | {how} | {seconds:.1f} s |")


def test_the_page_tells_the_truth() -> None:
    """Every test that it links to exists, and its table has every fault, each as it is tested."""
    page = PAGE.read_text()
    links = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", page)
    assert links
    for name, file in links:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), file
    tested = {(fault.inject.__name__, service) for fault in FAULTS for service in fault.services}
    rows = re.findall(r"^\| ([\w ]+) \| `([\w-]+)`( x \d)? \|", page, re.MULTILINE)
    table = {(fault.replace(" ", "_"), service + count) for fault, service, count in rows}
    assert table <= tested
    assert {fault for fault, _ in table} == {fault for fault, _ in tested}
