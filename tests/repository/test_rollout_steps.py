"""Each step of `make deploy`, with a small application and a database next to it."""

import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.commands import ROOT, free_port, poll, run
from tests.support.postgres_container import postgres_service

pytestmark = pytest.mark.slow

DOCKERFILE = """
FROM python:3.14-slim AS edge
FROM python:3.14-slim AS app
COPY app.py behaviour /
ENTRYPOINT ["python", "-u", "/app.py"]
"""
# Behaves as the file next to it says; SIGTERM ends it.
APP = """
import http.server, os, signal, sys, threading, time
behaviour = open("/behaviour").read()
print("behaviour:", behaviour, flush=True)
if sys.argv[1:] == ["migrate"]:
    time.sleep(1)
    sys.exit("told to fail" if behaviour == "does not migrate" else 0)
if behaviour == "does not boot":
    raise RuntimeError("told not to boot")
if behaviour == "crashes":
    threading.Timer(3, os._exit, [7]).start()
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if behaviour == "is not ready" else 200, "told to be unready")
        self.end_headers()
        self.wfile.write(behaviour.encode())
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
CHECK = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000', timeout=2)"
HEALTH = {"test": ["CMD", "python", "-c", CHECK], "interval": "1s", "retries": 2, "start_period": "3s"}
IMAGE = "${COMPOSE_PROJECT_NAME}-app:${VERSION:-latest}"
MIGRATED = {"migrate": {"condition": "service_completed_successfully"}}
SERVICES = {
    "edge": {
        "build": {"context": ".", "target": "edge"},
        "image": "${COMPOSE_PROJECT_NAME}-edge:latest",
        "command": ["sleep", "infinity"],
        "init": True,
    },
    "migrate": {"image": IMAGE, "command": ["migrate"], "restart": "no"},
    "app": {
        "build": {"context": ".", "target": "app"},
        "image": IMAGE,
        "depends_on": MIGRATED,
        "healthcheck": HEALTH,
        "restart": "unless-stopped",
    },
    "worker": {"image": IMAGE, "restart": "unless-stopped"},
}


class Project:
    """A Compose project: an edge, a one-shot, two replicas of an application, a worker and PostgreSQL."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = f"test-{secrets.token_hex(4)}"
        self.port = free_port()
        database = postgres_service() | {"ports": [f"127.0.0.1:{self.port}:5432"]}
        self.file = {"name": self.name, "services": SERVICES | {"db": database}, "volumes": {"database": {}}}
        self.write()
        (directory / "Dockerfile").write_text(DOCKERFILE)
        (directory / "app.py").write_text(APP)
        self.behave("serves")
        shutil.copy(ROOT / "deploy/rollout.py", directory)

    def write(self) -> None:
        """Write the compose file."""
        (self.directory / "docker-compose.yml").write_text(json.dumps(self.file))

    def behave(self, behaviour: str) -> None:
        """What the application does that is built next."""
        (self.directory / "behaviour").write_text(behaviour)

    def compose(self, *arguments: str) -> str:
        """The output of `docker compose ARGUMENTS`."""
        return run("docker", "compose", *arguments, cwd=self.directory)

    def deploy(self, *arguments: str, expect: int = 0) -> str:
        """The output of `rollout.py ARGUMENTS`."""
        return run("python3", "rollout.py", *arguments, cwd=self.directory, expect=expect)

    def interrupt(self, version: str, when: Callable[[str], bool], number: int) -> str:
        """Deploy a version, send a signal as soon as `when(output)` is true; the output."""
        output = self.directory / "output"
        with output.open("w") as file:
            command = [sys.executable, "rollout.py", version]
            process = subprocess.Popen(command, cwd=self.directory, stdout=file, stderr=file)
        poll(lambda: when(output.read_text()), seconds=60)
        process.send_signal(number)
        process.wait(60)
        # A command that has been started finishes without it, and holds the lock until then.
        with self.lock():
            return output.read_text()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of a deployment, as soon as there is none."""
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)

    def environment(self) -> str:
        """What stands in .env."""
        path = self.directory / ".env"
        return path.read_bytes().decode("utf-8") if path.exists() else ""

    def containers(self) -> dict[str, tuple[str, ...]]:
        """Id, image and state of every container, by name."""
        label = f"label=com.docker.compose.project={self.name}"
        command = ("docker", "ps", "--all", "--filter", label, "--format")
        lines = run(*command, "{{.Names}} {{.ID}} {{.Image}} {{.State}}").splitlines()
        return {
            name.removeprefix(f"{self.name}-"): tuple(rest) for name, *rest in sorted(map(str.split, lines))
        }

    def versions(self) -> dict[str, str]:
        """The version of every running container that this project builds, by name."""
        return {
            name: image.rpartition(":")[2]
            for name, (_, image, state) in self.containers().items()
            if state == "running" and "-app:" in image and not name.endswith("-candidate")
        }

    def remove(self) -> None:
        """Remove everything."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        names = ("--filter", f"reference={self.name}-*", "--format", "{{.Repository}}:{{.Tag}}")
        run("docker", "rmi", *run("docker", "image", "ls", *names).split())


def replicas(version: str) -> dict[str, str]:
    """What runs after a successful deployment of a version."""
    return dict.fromkeys(["app-1", "app-2", "worker-1"], version)


@pytest.fixture(scope="module")
def project(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, running; a test leaves version and behaviour as it likes."""
    stack = Project(tmp_path_factory.mktemp("project"))
    try:
        stack.compose("up", "--build", "--detach", "--wait", "--scale", "app=2")
        yield stack
    finally:
        stack.remove()


@pytest.fixture(autouse=True)
def behaving(project: Project) -> Iterator[None]:
    """The next test builds a version that serves."""
    yield
    project.behave("serves")


def test_a_database_and_the_edge_are_left_alone(project: Project) -> None:
    """PostgreSQL has every row that it acknowledged during a deployment and a rollback."""
    before, done, acknowledged = project.containers(), threading.Event(), 0
    # A pruned one-shot container changes nothing: it runs all the same.
    run("docker", "rm", f"{project.name}-migrate-1")
    # A database and an edge that a plain `up` would replace.
    project.file["services"]["db"]["environment"] = {"CHANGED": "yes"}
    project.write()
    with psycopg.connect(host="127.0.0.1", port=project.port, user="app", dbname="postgres") as connection:
        connection.autocommit = True
        connection.execute("CREATE TABLE row (number int)")

        def write() -> None:
            nonlocal acknowledged
            while not done.is_set():
                connection.execute("INSERT INTO row VALUES (1)")
                acknowledged += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            output = project.deploy("1")
            assert project.versions() == replicas("1")
            project.deploy("--rollback")
            assert project.versions() == replicas("latest")
        finally:
            done.set()
            writer.join()
        (kept,) = connection.execute("SELECT count(*) FROM row").fetchone()
    print(f"{acknowledged} rows acknowledged, {kept} kept")
    assert kept == acknowledged > 0
    after = project.containers()
    for name in ("db-1", "edge-1"):
        assert after[name] == before[name]
    assert "left alone: db, edge\ndb: its definition or image has changed; to replace it: docker" in output
    assert "edge: its definition" not in output
    assert "migrate: run\nbehaviour: serves" in output
    assert project.environment() == "VERSION=latest\nPREVIOUS_VERSION=1\n"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("does not migrate", "told to fail"),
        ("does not boot", "app-candidate: ended with exit code 1\n(.|\n)*told not to boot"),
        ("is not ready", "app-candidate: not healthy: (.|\n)*503: told to be unready"),
        ("crashes", "app-candidate: ended with exit code 7\nbehaviour: crashes"),
    ],
)
def test_a_bad_version_replaces_nothing(project: Project, behaviour: str, reason: str) -> None:
    """The containers and .env stay; the reason and the last log lines are printed."""
    before, environment = project.containers(), project.environment()
    project.behave(behaviour)
    output = project.deploy("bad", expect=1)
    assert re.search(reason, output), output
    assert (project.containers(), project.environment()) == (before, environment)


def test_an_interrupted_deployment_leaves_the_next_one_right(project: Project) -> None:
    """Signals and kill -9 at every step: .env is whole, and the version before is one that served."""
    # What a user's file may hold stays as it is: mark, comment, line ends and mode.
    path = project.directory / ".env"
    rest = "# mine\r\nSECRET='a b'\r\n"
    path.write_bytes(f"\ufeffVERSION=latest # now\r\n{rest}".encode())
    path.chmod(0o640)
    project.deploy("good")
    good = f"\ufeffPREVIOUS_VERSION=latest\r\nVERSION=good # now\r\n{rest}"
    assert project.environment() == good
    assert path.stat().st_mode & 0o777 == 0o640

    for number, text in [
        (signal.SIGHUP, "migrate: run"),
        (signal.SIGTERM, "try broken"),
        (signal.SIGINT, "try broken"),
        (signal.SIGKILL, "try broken"),
    ]:
        output = project.interrupt("broken", lambda printed, text=text: text in printed, number)
        assert (project.environment(), project.versions()) == (good, replicas("good")), output
        assert number == signal.SIGKILL or f"{number.name}: nothing was replaced" in output

    # Killed in the middle of the replacement, it is completed.
    project.interrupt("next", lambda _: "VERSION=next" in project.environment(), signal.SIGKILL)
    assert "PREVIOUS_VERSION=good\r\nVERSION=next" in project.environment()
    poll(lambda: project.versions() == replicas("next"), seconds=60)
    project.interrupt("last", lambda _: "VERSION=last" in project.environment(), signal.SIGTERM)
    assert project.versions() == replicas("last")
    assert "PREVIOUS_VERSION=next\r\nVERSION=last" in project.environment()

    # As after a power failure: an old container has been stopped, and the new one was never started.
    path.write_bytes(path.read_bytes().replace(b"VERSION=last", b"VERSION=lost"))
    name = f"{project.name}-app-2"
    run("docker", "stop", name)
    values = {"project": project.name, "service": "app", "oneoff": "False", "container-number": "2"}
    labels = [
        word for key, value in values.items() for word in ("--label", f"com.docker.compose.{key}={value}")
    ]
    run("docker", "create", *labels, "--name", f"0123456789ab_{name}", f"{project.name}-app:next")
    project.deploy("--rollback")
    assert project.versions() == replicas("next")


def test_what_cannot_be_done_is_said_in_one_line(project: Project) -> None:
    """A wrong tag, a deployment that runs already, a changed network, and one without the edge."""
    before = project.containers()
    assert "VERSION='a/b': must be an image tag" in project.deploy("a/b", expect=1)
    with project.lock():
        assert "another deployment of this project is running" in project.deploy("2", expect=1)
    project.file["networks"] = {"default": {"labels": {"changed": "yes"}}}
    project.write()
    try:
        assert "the definition of this network has changed" in project.deploy("2", expect=1)
        project.file["networks"] = {"own": {}}
        project.file["services"]["app"] |= {"networks": ["own"]}
        project.write()
        assert "app: the running edge is in none of its networks" in project.deploy("2", expect=1)
    finally:
        del project.file["networks"]
        project.file["services"]["app"].pop("networks", None)
        project.write()
    assert project.containers() == before
