"""A version replaces another one under load, and nobody notices; a bad one changes nothing."""

import ast
import json
import re
import runpy
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from checks.doctor import seconds
from serving import health
from tests.support.commands import HOUSEKEEPING, ROOT, answers, poll, run
from tests.support.containers import Containers
from tests.support.files import CADDYFILE, COMMANDS, edge, long_running

rollout = runpy.run_path(str(ROOT / "deploy/rollout.py"))

# Around the image's own application: writes down what was received, and takes the time that was asked for.
WITNESS = """
import asyncio, importlib, inspect, os, re, time

module, _, name = os.environ["WITNESSED"].partition(":")
app = getattr(importlib.import_module(module), name or "application")

def seconds(method, query):
    if found := re.search("id=([0-9a-f]+)", query):
        with open("/witness/received", "a") as file:
            file.write(f"{method} {found[1]}\\n")
    return int("".join(re.findall("slow=([0-9]+)", query)) or 0)

def wsgi(environ, start_response):
    time.sleep(seconds(environ["REQUEST_METHOD"], environ["QUERY_STRING"]))
    return app(environ, start_response)

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(seconds(scope["method"], scope["query_string"].decode()))
    await app(scope, receive, send)
    if scope["type"] == "lifespan":
        os.write(1, b"the lifespan has ended\\n")

application = asgi if inspect.iscoroutinefunction(type(app).__call__) else wsgi
"""
HYBRID = ("serving.gunicorn", "--worker-class", "serving.uvicorn.worker.Worker")
WITNESSED = {
    "django": (("serving.gunicorn",), "wsgi_app.django_site.wsgi"),
    "flask": (("serving.gunicorn",), "wsgi_app.flask_site"),
    "fastapi": (("asgi_app",), "asgi_app.main:app"),
    "fastapi-hybrid": (HYBRID, "asgi_app.main:app"),
}
# What a bad version has at the end of serving/health.py, and what is then said of it.
BAD = {
    "does not boot": ("raise RuntimeError('told not to boot')", "told not to boot"),
    "is not ready": ("def answer(*_): return 503, b'told to be unready'", "told to be unready"),
    "crashes after 3 s": (
        "import os, threading\ncrash = threading.Timer(3, os._exit, [7])\ncrash.daemon = True\n"
        "if __name__ != '__main__': crash.start()",
        "exit code 7",
    ),
}


class Deployment(Containers):
    """The Compose project of a copy of the repository, whose applications have a witness."""

    def __init__(self, directory: Path, **options: dict) -> None:
        shutil.copytree(ROOT, directory, ignore=HOUSEKEEPING)
        self.directory, self.witness = directory, directory / "witness"
        self.witness.mkdir()
        self.witness.chmod(0o777)
        (self.witness / "witness.py").write_text(WITNESS)
        (self.witness / "received").touch()
        (self.witness / "received").chmod(0o666)
        services = {
            name: {
                "command": ["python", "-m", *command, "witness:application"],
                "environment": {"PYTHONPATH": "/witness", "WITNESSED": application},
                "volumes": [f"{self.witness}:/witness"],
            }
            | options
            for name, (command, application) in WITNESSED.items()
        }
        super().__init__(COMPOSE_PROFILES="*")
        services = {name: services[name] for name in self.urls}
        (directory / "witness.yml").write_text(json.dumps({"services": services}))
        self.files = [
            "--file",
            str(directory / "docker-compose.yml"),
            "--file",
            str(directory / "witness.yml"),
        ]
        self.environ |= {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": "docker-compose.yml:witness.yml",
        }
        self.environ.pop("MAKEFLAGS", None)

    def make(self, *arguments: str, expect: int = 0) -> str:
        """The output of `make ARGUMENTS`."""
        return run("make", *arguments, cwd=self.directory, env=self.environ, expect=expect, timeout=600)

    def replicas(self) -> dict[str, str]:
        """The image of every running container of the applications, by name."""
        command = ("docker", "ps", "--filter", f"label=com.docker.compose.project={self.project}", "--format")
        lines = run(*command, "{{.Names}} {{.Image}}").splitlines()
        images = dict(line.removeprefix(f"{self.project}-").split() for line in lines)
        return {name: image for name, image in sorted(images.items()) if not name.startswith("edge")}

    def received(self) -> Counter[str]:
        """How often each request arrived at an application, by method and id."""
        return Counter((self.witness / "received").read_text().splitlines())


class Load:
    """Clients of every service, from `with` to its end: GET and POST, quick and slow, and WebSockets."""

    def __init__(self, stack: Deployment) -> None:
        self.stack, self.done = stack, threading.Event()
        self.sent: dict[str, str] = {}
        self.failures: list[str] = []
        self.codes: Counter[int | None] = Counter()
        self.absences: list[float] = []
        self.threads: list[threading.Thread] = []
        for service in stack.urls:
            if service.startswith("fastapi"):
                self.client(self.talk, service)
            for pace in ("", "", "&slow=2"):
                for method in ("GET", "POST"):
                    self.client(self.ask, service, method, pace)

    def client(self, function: Callable, *arguments: str) -> None:
        """One client in a thread of its own."""
        self.threads.append(threading.Thread(target=function, args=arguments))

    def ask(self, service: str, method: str, pace: str) -> None:
        """Send requests, each with an id of its own."""
        with httpx2.Client(base_url=self.stack.urls[service], trust_env=False, timeout=60) as client:
            while not self.done.wait(0.1):
                identity = secrets.token_hex(8)
                request = f"{method} {identity}"
                self.sent[request] = service
                try:
                    path, form = self.form(client, service, identity) if method == "POST" else ("/", {})
                    answer = client.request(method, f"{path}?id={identity}{pace}", **form)
                    if answer.status_code not in (200, 302):
                        self.failures.append(f"{service} {request}{pace}: {answer.status_code} {answer.text}")
                except httpx2.HTTPError as error:
                    self.failures.append(f"{service} {request}{pace}: {error!r}")

    def form(self, client: httpx2.Client, service: str, identity: str) -> tuple[str, dict]:
        """Where the service takes a POST, and what it takes."""
        if service == "django":
            if "csrftoken" not in client.cookies:
                client.get("/")
            token = {"csrfmiddlewaretoken": client.cookies["csrftoken"]}
            return "/", {"data": {"author": "Load", "message": identity} | token}
        return "/echo", {"json": identity}

    def talk(self, service: str) -> None:
        """Keep a WebSocket open; come back when it is closed."""
        gone = 0.0
        while not self.done.is_set():
            try:
                with connect(self.stack.urls[service].replace("http", "ws") + "/ws") as client:
                    while not self.done.wait(0.05):
                        client.send("here")
                        assert client.recv(timeout=20) == "here"
                        if gone:
                            self.absences.append(time.monotonic() - gone)
                            gone = 0.0
            except ConnectionClosed as closed:
                self.codes[closed.rcvd and closed.rcvd.code] += 1
                gone = time.monotonic()
            except Exception as error:  # noqa: BLE001  whatever it is, a client has seen it
                self.failures.append(f"{service} WebSocket: {error!r}")

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()

    def report(self) -> str:
        """One line of figures."""
        worst = max(self.absences, default=0)
        return f"{len(self.sent)} sent, {len(self.failures)} failed, {self.codes}, away for {worst:.2f} s"


def guestbook_messages(stack: Containers) -> Counter[str]:
    """How often each message stands in the guestbook."""
    program = "from wsgi_app.django_site.models import Entry; print(*Entry.objects.values_list('message'))"
    shell = ("python", "-m", "wsgi_app.django_site", "shell", "--verbosity", "0", "--command", program)
    return Counter(re.findall("[0-9a-f]{16}", stack.exec("django", *shell)))


@pytest.fixture(scope="module")
def deployment(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Every service, two replicas of the first one."""
    stack = Deployment(tmp_path_factory.mktemp("deployment") / "repository")
    try:
        stack.compose("up", "--build", "--detach", "--wait", "--scale", f"{next(iter(stack.urls))}=2")
        yield stack
    finally:
        stack.down()


def test_a_new_version_and_the_way_back_lose_nothing(deployment: Deployment) -> None:
    """Every request is answered once, before, during and after; a WebSocket is asked to come back."""
    before = deployment.replicas()
    with Load(deployment) as load:
        deployment.make("deploy", "VERSION=1.0")
        new = deployment.replicas()
        deployment.make("rollback")
    print(load.report())
    assert load.failures == []
    received = deployment.received()
    assert {request: count for request, count in received.items() if count != 1} == {}
    assert load.sent.keys() == received.keys()
    if "django" in deployment.urls:
        posts = [request.split()[1] for request, service in load.sent.items() if service == "django"]
        assert guestbook_messages(deployment) == {
            identity: 1 for identity in posts if f"POST {identity}" in load.sent
        }
    assert load.codes.keys() <= {1001, 1012}
    assert max(load.absences, default=0) < 5
    assert new == {name: image.replace(":latest", ":1.0") for name, image in before.items()}
    assert deployment.replicas() == before


def test_a_request_longer_than_the_grace_has_an_answer(deployment: Deployment) -> None:
    """A gateway timeout of the edge's; the server ends in time, after the application's shutdown."""
    answers: dict[str, int] = {}

    def ask(service: str) -> None:
        url = f"{deployment.urls[service]}/?id=aa{list(deployment.urls).index(service)}&slow=60"
        answers[service] = httpx2.get(url, trust_env=False, timeout=60).status_code

    clients = [threading.Thread(target=ask, args=[service]) for service in deployment.urls]
    for client in clients:
        client.start()
    try:
        arrived = {f"GET aa{number}" for number in range(len(clients))}
        poll(lambda: arrived <= deployment.received().keys(), log=deployment.log)
        deployment.compose("stop", *deployment.urls)
    finally:
        for client in clients:
            client.join()
    try:
        assert answers == dict.fromkeys(deployment.urls, 504)
        for service in deployment.urls:
            assert deployment.inspect(service, "{{.State.ExitCode}}") == "0", deployment.log(service)
            if service.startswith("fastapi"):
                assert "the lifespan has ended" in deployment.log(service)
    finally:
        deployment.compose("up", "--detach", "--wait", "--no-build", "--no-recreate", *deployment.urls)


@pytest.fixture(scope="module")
def single(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The edge and one service that needs no other, deployed."""
    # What is not ready soon, is called so soon.
    healthcheck = {"interval": "1s", "retries": 2, "start_period": "20s"}
    stack = Deployment(tmp_path_factory.mktemp("single") / "repository", healthcheck=healthcheck)
    name = list(stack.urls)[:2][-1]
    stack.urls = {name: stack.urls[name]}
    try:
        stack.up(name)
        yield stack
    finally:
        stack.down()


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_version_changes_nothing(single: Deployment, fault: str) -> None:
    """The old replica goes on, no request meets the new one; the end says why, and what it printed last."""
    code, reason = BAD[fault]
    before, (name, *_) = single.replicas(), single.urls
    settings = (single.directory / ".env").exists()
    health = single.directory / "serving/health.py"
    good = health.read_text()
    health.write_text(f"{good}\n{code}\n")
    try:
        with Load(single) as load:
            output = single.make("deploy", "VERSION=bad", expect=2)
    finally:
        health.write_text(good)
    assert reason in output
    assert f"{single.project}-{name}-candidate: " in output
    assert "workers=" in output or "Traceback" in output
    assert load.failures == []
    assert load.codes.total() == 0
    assert (single.replicas(), (single.directory / ".env").exists()) == (before, settings)


def test_what_can_not_be_done_is_said(single: Deployment) -> None:
    """No version before, no place for a successor, no valid tag: one line, and nothing has happened."""
    name = next(iter(single.urls))
    assert "VERSION='': must be" in single.make("rollback", expect=2)
    assert "VERSION='a/b': must be" in single.make("deploy", "VERSION=a/b", expect=2)
    scale = ("--detach", "--wait", "--no-build", "--no-deps", "--no-recreate", "--scale")
    single.compose("up", *scale, f"{name}=4", name)
    try:
        output = single.make("deploy", expect=2)
        assert f"{name}: no place is free" in output
        advice = output.partition("successor: docker ")[2].split("\n")[0]
        with Load(single) as load:
            run("docker", *advice.split(), cwd=single.directory, env=single.environ)
        assert load.failures == [], "fewer replicas: pre_stop comes first"
        assert [*single.replicas()] == [f"{name}-{number}" for number in (1, 2, 3)]
    finally:
        single.compose("up", *scale, f"{name}=1", name)


def test_images_built_once_are_deployed_elsewhere(single: Deployment, tmp_path: Path) -> None:
    """docker-compose.yml, .env and an engine that has the images: that serves them, and replaces them."""
    starts = ("docker save", "docker load", "docker compose up --detach --wait --no-build")
    save, load, up = [line for line in COMMANDS if line.startswith(starts)]
    single.environ["COMPOSE_PROFILES"] = ""
    (name,), others = single.urls, single.config()["services"].keys() - single.urls.keys() - {"edge"}
    (tmp_path / ".env").write_text(f"COMPOSE_PROJECT_NAME={single.project}\n")
    shutil.copy(single.directory / "docker-compose.yml", tmp_path)
    single.compose("build")
    elsewhere = {"cwd": tmp_path, "env": single.environ | {"COMPOSE_FILE": "docker-compose.yml"}}
    run("sh", "-c", save, **elsewhere)
    single.down()
    run("sh", "-c", load, **elsewhere)
    try:
        run("sh", "-c", up, **elsewhere)
        assert answers(single.urls[name])
        run("docker", "compose", "rm", "--stop", "--force", *others, **elsewhere)
        image = single.replicas()[f"{name}-1"]
        run("docker", "tag", image, image.replace(":latest", ":next"))
        run("python3", ROOT / "deploy/rollout.py", "next", **elsewhere)
        assert single.replicas() == {f"{name}-1": image.replace(":latest", ":next")}
        assert answers(single.urls[name])
        assert "VERSION=next\nPREVIOUS_VERSION=latest\n" in (tmp_path / ".env").read_text()
    finally:
        single.down()


def test_the_edge_has_seen_what_a_stop_waits_for() -> None:
    """It asks /readyz at least twice while a drained server, or a rollout, waits for it."""
    assert 2 * seconds(edge("health_interval")) <= rollout["SEEN"] < health.NOTICED
    for name, service in long_running().items():
        drains = [hook["command"] for hook in service.get("pre_stop", [])]
        assert drains == ([] if name == "edge" else [["python", "-m", "serving.health", "--drain"]]), name


def test_the_rollout_knows_the_places_that_the_edge_asks() -> None:
    """It is short, and runs wherever there is a Python."""
    assert rollout["PLACES"] == {int(number) for number in re.findall(r"{args\[0\]}-(\d):8000", CADDYFILE)}
    text = (ROOT / "deploy/rollout.py").read_text()
    assert len(text.splitlines()) < 150
    ast.parse(text, feature_version=(3, 9))
