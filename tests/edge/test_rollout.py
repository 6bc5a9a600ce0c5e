"""A version replaces another one under load, and no request is lost."""

import json
import re
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

from tests.support.commands import HOUSEKEEPING, ROOT, answers, poll, run
from tests.support.containers import Containers

pytestmark = pytest.mark.alone

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
WITNESSED = {
    "django": (("serving.gunicorn",), "wsgi_app.django_site.wsgi"),
    "flask": (("serving.gunicorn",), "wsgi_app.flask_site"),
    "fastapi": (("serving.uvicorn",), "asgi_app.main:app"),
}
# What Django's next version brings: another stylesheet, and a column that the version before does not know.
DJANGO_STYLES, DJANGO_MODELS = "wsgi_app/django_site/static/guestbook.css", "wsgi_app/django_site/models.py"
DJANGO_MIGRATION = (
    "from django.db import migrations, models\n"
    "class Migration(migrations.Migration):\n"
    '    dependencies = [("guestbook", "0001_initial")]\n'
    '    field = models.CharField(max_length=20, db_default="")\n'
    '    operations = [migrations.AddField("entry", "mood", field)]\n'
)


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

    def change_django(self) -> None:
        """Make the next version of Django's site."""
        styles, models = self.directory / DJANGO_STYLES, self.directory / DJANGO_MODELS
        styles.write_text(styles.read_text() + "\n.next { color: red }\n")
        field = '    mood = models.CharField(max_length=20, db_default="")\n'
        models.write_text(models.read_text().replace("\n    class Meta", f"{field}\n    class Meta"))
        (models.parent / "migrations/0002_entry_mood.py").write_text(DJANGO_MIGRATION)

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
        self.slowest = 0.0
        self.threads: list[threading.Thread] = []
        for service in stack.urls:
            if service.startswith("fastapi"):
                self.client(self.talk, service)
            for pace in ("", "", "&slow=2"):
                for method in ("GET", "POST"):
                    self.client(self.ask, service, method, pace)
            if service == "django":
                self.client(self.read_django_styles, service)

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
                started = time.monotonic()
                try:
                    path, form = self.form(client, service, identity) if method == "POST" else ("/", {})
                    answer = client.request(method, f"{path}?id={identity}{pace}", **form)
                    if answer.status_code not in (200, 302):
                        self.failures.append(f"{service} {request}{pace}: {answer.status_code} {answer.text}")
                except httpx2.HTTPError as error:
                    self.failures.append(f"{service} {request}{pace}: {error!r}")
                self.slowest = max(self.slowest, time.monotonic() - started)

    def read_django_styles(self, service: str) -> None:
        """Ask for the stylesheet that the page had at the start, as a browser with an old page does."""
        with httpx2.Client(base_url=self.stack.urls[service], trust_env=False, timeout=60) as client:
            (styles,) = re.findall(r'href="(/static/guestbook[.]\w+[.]css)"', client.get("/").text)
            while not self.done.wait(0.1):
                answer = client.get(styles)
                if answer.status_code != 200 or "immutable" not in answer.headers["cache-control"]:
                    self.failures.append(f"{styles}: {answer.status_code}")

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
                url = self.stack.urls[service].replace("http", "ws") + "/ws"
                with connect(url, open_timeout=60) as client:
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
        requests = f"{len(self.sent)} requests, {len(self.failures)} failed, slowest {self.slowest:.1f} s"
        return f"{requests}, WebSockets {dict(self.codes)}, away for {worst:.1f} s"


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
    """Every request is answered once, also by the old version on the new schema."""
    before = deployment.replicas()
    if "django" in deployment.urls:
        deployment.change_django()
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
    assert max(load.absences, default=0) < 60
    before.pop("migrate-1", None)
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


def test_images_built_once_are_deployed_elsewhere(single: Deployment, tmp_path: Path) -> None:
    """docker-compose.yml, .env and an engine that has the images: that serves them, and replaces them."""
    starts = ("docker save", "docker load", "docker compose up --detach --wait --no-build")
    lines = (ROOT / "docs/deploy.md").read_text().splitlines()
    save, load, up = [next(line for line in lines if line.startswith(start)) for start in starts]
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
