"""The services under load while something replaces them, and a record of what reached them."""

import json
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.clients import Clients
from tests.support.commands import HOUSEKEEPING, ROOT, run
from tests.support.containers import Containers

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
        super().__init__()
        services = {name: services[name] for name in self.urls}
        (directory / "witness.yml").write_text(json.dumps({"services": services}))
        self.files = [
            "--file",
            str(directory / "docker-compose.yml"),
            "--file",
            str(directory / "witness.yml"),
            "--file",
            str(self.networks),
        ]
        self.environ |= {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": f"docker-compose.yml:witness.yml:{self.networks}",
        }

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

    def guestbook_messages(self) -> Counter[str]:
        """How often the guestbook has each message of 16 characters."""
        messages = "Entry.objects.values_list('message', flat=True)"
        program = f"from wsgi_app.django_site.models import Entry; print(*{messages})"
        shell = ("python", "-m", "wsgi_app.django_site", "shell", "--verbosity", "0", "--command", program)
        return Counter(word for word in self.exec("django", *shell).split() if len(word) == 16)

    def received(self) -> Counter[str]:
        """How often each request arrived at an application, by method and id."""
        return Counter((self.witness / "received").read_text().splitlines())


class Load(Clients):
    """Clients of every service, from `with` to its end: GET and POST, quick and slow, and WebSockets."""

    def __init__(self, stack: Deployment) -> None:
        super().__init__()
        self.stack = stack
        self.sent: dict[str, str] = {}
        self.failures: list[str] = []
        self.codes: Counter[int | None] = Counter()
        self.absences: list[float] = []
        self.slowest = 0.0
        for service in stack.urls:
            if service.startswith("fastapi"):
                self.client(self.talk, service)
                self.client(self.follow_events, service)
            for pace in ("", "", "&slow=2", "&slow=15"):
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
            styles = client.get("/").text.partition('rel="stylesheet" href="')[2].partition('"')[0]
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

    def follow_events(self, service: str) -> None:
        """Read streams of 15 events, one a second; each must be whole."""
        with httpx2.Client(base_url=self.stack.urls[service], trust_env=False, timeout=60) as client:
            while not self.done.wait(0.1):
                try:
                    with client.stream("GET", "/events?count=15&interval=1") as answer:
                        events = sum(line.startswith("data:") for line in answer.iter_lines())
                    if events != 15:
                        self.failures.append(f"{service} event stream: {events} of 15 events")
                except httpx2.HTTPError as error:
                    self.failures.append(f"{service} event stream: {error!r}")

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

    def report(self) -> str:
        """One line of figures."""
        worst = max(self.absences, default=0)
        requests = f"{len(self.sent)} requests, {len(self.failures)} failed, slowest {self.slowest:.1f} s"
        return f"{requests}, WebSockets {dict(self.codes)}, away for {worst:.1f} s"
