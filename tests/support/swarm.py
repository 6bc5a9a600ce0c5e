"""The stack of a copy of the repository on a Docker Swarm, and clients of its edges."""

import json
import os
import secrets
import shutil
import threading
import time
from pathlib import Path

import httpx2

from tests.support.clients import Clients
from tests.support.commands import HOUSEKEEPING, ROOT, RUN, STARTED, answers, free_port, lacking, poll, run

# The engine's network between the node and the containers of a Swarm; it stays when a node leaves.
GATEWAY = "docker_gwbridge"
# What fails is called so sooner than the product calls it.
FASTER = {"interval: 10s": "interval: 2s", "start_period: 60s": "start_period: 15s"}
FASTER['EDGE_DRAIN_SECONDS: "10"'] = 'EDGE_DRAIN_SECONDS: "3"'
CLIENT = "203.0.113.7"
SECRETS: dict[str, str] = {}
SECRETS["django-secret-key"] = "of no use elsewhere"
SECRETS["django-database-url"] = "sqlite:////data/db.sqlite3"


class Swarm:
    """This engine as a Swarm, until `leave`, and a stack on it, with versions 1, 2 and so on."""

    def __init__(self, directory: Path) -> None:
        if run("docker", "info", "--format", "{{.Swarm.LocalNodeState}}").strip() != "inactive":
            lacking("this engine is a part of a Swarm already")
        self.had_gateway = GATEWAY in run("docker", "network", "ls", "--format", "{{.Name}}").split()
        shutil.copytree(ROOT, directory, ignore=HOUSEKEEPING)
        self.directory, self.secrets = directory, SECRETS.copy()
        self.name = f"test-{os.environ[RUN]}-{secrets.token_hex(2)}"
        stack = directory / "deploy/swarm/stack.yml"
        for old, new in FASTER.items():
            assert old in stack.read_text()
            stack.write_text(stack.read_text().replace(old, new))
        self.environ = os.environ | {
            "COMPOSE_PROJECT_NAME": self.name,
            "EDGE_HTTP_PORT": str(free_port()),
            "EDGE_HTTPS_PORT": str(free_port()),
            # The clients say that a load balancer has terminated TLS.
            "EDGE_TRUSTED_PROXIES": "private_ranges",
        }
        self.url = f"http://127.0.0.1:{self.environ['EDGE_HTTP_PORT']}"
        self.applications = sorted(path.stem for path in (directory / "deploy/edge/sites").iterdir())
        STARTED.append(self)

    def create(self, address: str = "127.0.0.1") -> None:
        """Make the Swarm, its secrets, and the images of version 1."""
        run("docker", "swarm", "init", "--advertise-addr", address)
        node = run("docker", "node", "ls", "--quiet").strip()
        run("docker", "node", "update", "--label-add", "edge=true", node)
        for name, value in self.secrets.items():
            run("docker", "secret", "create", f"{self.name}-{name}", "-", input=value)
        environ = self.environ | {"VERSION": "1"}
        run("docker", "compose", "build", cwd=self.directory, env=environ, timeout=600)

    def deploy(self, version: str, expect: int = 0) -> str:
        """The output of `make swarm-deploy`."""
        words = ("make", "swarm-deploy", f"VERSION={version}")
        return run(*words, cwd=self.directory, env=self.environ, expect=expect, timeout=400)

    def release(self, version: str, **changes: str) -> None:
        """Make images of a version: those of version 1 with lines of a Dockerfile, by application."""
        for application in self.applications:
            image = f"{self.name}-{application}"
            dockerfile = f"FROM {image}:1\nENV RELEASE={version}\n{changes.get(application, '')}\n"
            run("docker", "build", "--tag", f"{image}:{version}", "-", input=dockerfile)

    def containers(self, service: str) -> dict[str, str]:
        """The id of each running container of a service, with its image."""
        label = f"label=com.docker.swarm.service.name={self.name}_{service}"
        found = run("docker", "ps", "--no-trunc", "--filter", label, "--format", "{{.ID}} {{.Image}}")
        return dict(line.split() for line in found.splitlines())

    def images(self) -> dict[str, set[str]]:
        """The versions that run, by application."""
        return {
            name: {image.rpartition(":")[2] for image in self.containers(name).values()}
            for name in self.applications
        }

    def healthy(self, service: str) -> list[str]:
        """The ids of the service's healthy containers."""
        label = f"label=com.docker.swarm.service.name={self.name}_{service}"
        options = ("--no-trunc", "--quiet", "--filter", "health=healthy")
        return run("docker", "ps", *options, "--filter", label).split()

    def inspect(self, service: str) -> list[dict]:
        """`docker inspect` of the service's containers."""
        return json.loads(run("docker", "inspect", *self.containers(service)))

    def exec(self, container: str, *command: str) -> str:
        """The output of a command inside a container."""
        return run("docker", "exec", container, *command)

    def local_images(self) -> list[str]:
        """The names of all images that were built for this stack."""
        names = ("--filter", f"reference={self.name}-*", "--format", "{{.Repository}}:{{.Tag}}")
        return run("docker", "image", "ls", *names).split()

    def recent_log(self, since: float) -> str:
        """The tasks, and what the containers of this engine have printed since that time."""
        texts = [run("docker", "stack", "ps", "--no-trunc", self.name, expect=None)]
        # Not `docker service logs`, which can wait forever for replicas that are being replaced.
        label = f"label=com.docker.stack.namespace={self.name}"
        names = run("docker", "ps", "--all", "--filter", label, "--format", "{{.Names}}")
        for name in names.split():
            texts += [name, run("docker", "logs", "--since", str(int(since)), name, expect=None)]
        return "\n".join(texts)

    def leave(self) -> None:
        """Remove everything, and leave the engine as it was."""
        run("docker", "stack", "rm", self.name, expect=None)
        label = f"label=com.docker.stack.namespace={self.name}"
        poll(lambda: not run("docker", "ps", "--all", "--quiet", "--filter", label), 120)
        run("docker", "swarm", "leave", "--force", expect=None)
        if not self.had_gateway:
            run("docker", "network", "rm", GATEWAY, expect=None)
        volumes = run("docker", "volume", "ls", "--quiet", "--filter", f"name={self.name}_").split()
        run("docker", "volume", "rm", "--force", *volumes, expect=None)
        if images := self.local_images():
            run("docker", "rmi", "--force", *images)


class Visitors(Clients):
    """Clients of every application, from `with` to its end: two read, two write."""

    def __init__(self, swarm: Swarm) -> None:
        super().__init__()
        self.swarm = swarm
        self.answered = 0
        self.failures: list[str] = []
        self.failed_at: list[float] = []
        self.slowest = 0.0
        self.threads = [
            threading.Thread(target=self.visit, args=(application, method))
            for application in swarm.applications
            for method in ("GET", "POST", "GET", "POST")
        ]

    def visit(self, application: str, method: str) -> None:
        """Send requests as a load balancer that has terminated TLS, and look at every answer."""
        name = f"{application}.localhost"
        headers = {"host": name, "x-forwarded-for": CLIENT, "x-forwarded-proto": "https"}
        options = {"headers": headers, "trust_env": False, "timeout": 60}
        with httpx2.Client(**options) as client:
            while not self.done.wait(0.05):
                begin = time.monotonic()
                try:
                    wrong = self.ask(client, application, method)
                except httpx2.HTTPError as error:
                    wrong = repr(error)
                taken = time.monotonic() - begin
                self.slowest = max(self.slowest, taken)
                self.answered += 1
                if wrong:
                    self.failed_at.append(begin)
                    self.failures.append(f"{application} {method}, after {taken:.1f} s: {wrong}")

    def edge(self) -> str:
        """The address of the edge for the next request."""
        return self.swarm.url

    def ask(self, client: httpx2.Client, application: str, method: str) -> str:
        """What is wrong with an answer; "" for nothing."""
        identity = secrets.token_hex(8)
        if application == "django":
            return self.ask_django(client, method, identity)
        if method == "POST":
            answer = client.post(f"{self.edge()}/echo", json=identity)
            right = answer.status_code == 200 and answer.json() == {"echo": identity}
        else:
            answer = client.get(self.edge())
            page = answer.json() if answer.status_code == 200 else {}
            right = (page.get("client"), page.get("scheme")) == (CLIENT, "https")
        return "" if right else f"{answer.status_code} {answer.text}"

    def ask_django(self, client: httpx2.Client, method: str, identity: str) -> str:
        """The same for Django, whose cookies are Secure where it trusts the edge."""
        page = client.get(self.edge())
        token = page.text.partition('csrfmiddlewaretoken" value="')[2].partition('"')[0]
        if not token or "Secure" not in page.headers["set-cookie"]:
            return f"{page.status_code} {page.headers} {page.text}"
        if method == "GET":
            return ""
        form = {"author": "visitor", "message": identity, "csrfmiddlewaretoken": token}
        headers = {"cookie": f"csrftoken={page.cookies['csrftoken']}", "origin": "https://django.localhost"}
        answer = client.post(self.edge(), data=form, headers=headers)
        return "" if answer.status_code == 302 else f"{answer.status_code} {answer.text}"

    def report(self) -> str:
        """One line of figures."""
        between = max(self.failed_at, default=0) - min(self.failed_at, default=0)
        failed = f"{len(self.failures)} failed" + (f" within {between:.1f} s" if self.failures else "")
        return f"{self.answered} requests, {failed}, slowest {self.slowest:.2f} s"


class BalancedVisitors(Visitors):
    """The same behind a load balancer that asks /livez of each edge, and leaves out those that fail."""

    def __init__(self, swarm: Swarm, *edges: str) -> None:
        super().__init__(swarm)
        self.healthy = self.edges = edges
        self.threads.append(threading.Thread(target=self.check))

    def check(self) -> None:
        """Ask every edge, twice a second."""
        while not self.done.wait(0.5):
            self.healthy = tuple(url for url in self.edges if answers(f"{url}/livez"))

    def edge(self) -> str:
        """One of those that are healthy."""
        return secrets.choice(self.healthy or self.edges)
