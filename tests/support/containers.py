"""The Compose project in containers, and what runs in them."""

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path
from typing import Any

from tests.support.commands import (
    HOUSEKEEPING,
    ROOT,
    RUN,
    STARTED,
    addresses,
    answers,
    free_port,
    one_at_a_time,
    poll,
    run,
)

MEBIBYTE = 1024 * 1024
# Copies what one connection receives to another one.
PUMP = """
import asyncio, sys

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()
"""
# Passes connections on to the services, each on a port of its own: a neighbour in the network.
RELAY = f"""{PUMP}
async def relay(service, port):
    async def connected(reader, writer):
        try:
            onward = await asyncio.open_connection(service, 8000)
        except OSError:
            return writer.close()
        await asyncio.gather(pump(reader, onward[1]), pump(onward[0], writer))
    await (await asyncio.start_server(connected, port=port)).serve_forever()

async def main():
    await asyncio.gather(*(relay(*word.split(":")) for word in sys.argv[1:]))

asyncio.run(main())
"""
PROCESSES = """
import json, pathlib
found = []
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        lines = [line.partition(":") for line in (entry / "status").read_text().splitlines()]
        arguments = (entry / "cmdline").read_text().split("\\0")[:-1]
    except OSError:  # ended meanwhile
        continue
    found.append({name: value.split() for name, _, value in lines} | {"Arguments": arguments})
print(json.dumps(found))
"""
WRITE = """
import errno, json, os, sys, tempfile
refused = {}
for directory in sys.argv[1:]:
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        refused[directory] = error.errno
print(json.dumps(refused))
"""


def subnet() -> str:
    """One of 786,432 private networks, at random."""
    return f"10.{64 + secrets.randbelow(192)}.{secrets.randbelow(256)}.{16 * secrets.randbelow(16)}/28"


class Containers:
    """The Compose project under a name, ports and volumes of its own."""

    runtime = "docker"

    def __init__(self, *files: Path, **environ: str) -> None:
        self.project = f"test-{os.environ[RUN]}-{secrets.token_hex(2)}"
        self.files = [
            word for file in (ROOT / "docker-compose.yml", *files) for word in ("--file", str(file))
        ]
        self.environ = os.environ | environ
        # Which variables move ports is Compose's business: ask it, then move every one.
        variables = run("docker", "compose", *self.files, "config", "--variables").split()
        self.ports = {name: str(free_port()) for name in variables if name.endswith("_PORT")}
        self.environ |= self.ports
        config = self.config()
        self.services = config["services"]
        # The engine has addresses for about thirty networks. Each of these takes sixteen of others.
        self.networks = Path(os.environ["PYTEST_LOGS"], f"{self.project}.json")
        networks = {name: {"ipam": {"config": [{"subnet": subnet()}]}} for name in config["networks"]}
        self.networks.write_text(json.dumps({"networks": networks}))
        self.files += ["--file", str(self.networks)]
        self.urls = addresses(self.services, self.ports)
        self._direct: dict[str, str] = {}
        self.neighbours: list[str] = []
        self.name = f"the containers of {self.project}"
        STARTED.append(self)

    def compose(self, *arguments: str, **options: Any) -> str:
        """The output of `docker compose ARGUMENTS` for this project."""
        command = ("docker", "compose", "--project-name", self.project, *self.files, *arguments)
        return run(*command, env=self.environ, **options)

    def config(self) -> dict:
        """The resolved file."""
        return json.loads(self.compose("config", "--format", "json"))

    def up(self, *services: str, **options: Any) -> str:
        """Build, start and wait, also for what stands before the services; fails with the logs."""
        services = ("edge", *services) if services else ()
        # The first worker builds, the others find its layers.
        with one_at_a_time("build"):
            output = self.compose("build", *services, expect=None, **options)
        output += self.compose("up", "--no-build", "--detach", "--wait", *services, expect=None, **options)
        checked = [
            name for name, service in self.services.items() if "test" in service.get("healthcheck", {})
        ]
        for service in services or checked:
            # On a busy machine a check may fail, and the wait with it, although all is well a moment later.
            poll(
                lambda name=service: self.health(name) == "healthy",
                log=lambda name=service: f"{name} is not healthy\n{self.log(name)}\n{output[-2000:]}",
            )
        return output

    def direct(self, service: str) -> str:
        """The service's own address, as another container in its network has it."""
        if not self._direct:
            ports = {name: free_port() for name in self.urls}
            published = [
                word for port in ports.values() for word in ("--publish", f"127.0.0.1:{port}:{port}")
            ]
            relay = ("python", "-c", RELAY, *(f"{name}:{port}" for name, port in ports.items()))
            self.neighbour(f"{self.project}-relay", *relay, options=published)
            self._direct = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
            for name in filter(self.container, self.urls):
                poll(lambda url=self._direct[name]: answers(url + "/livez"))
        return self._direct[service]

    def neighbour(self, name: str, *command: str, options: Iterable[str] = ()) -> None:
        """Run a container of this name in the networks of the edge until `down`."""
        self.neighbours.append(name)
        networks = [f"--network={self.project}_{name}" for name in self.services["edge"]["networks"]]
        run("docker", "run", "--detach", "--name", name, *networks, *options, python_image(), *command)

    def container(self, service: str) -> str:
        """The id of the service's (first) container, also of a stopped one."""
        return next(iter(self.compose("ps", "--all", "--quiet", service).split()), "")

    def inspect(self, service: str, template: str) -> str:
        """`docker inspect` of the service's container."""
        return run("docker", "inspect", "--format", template, self.container(service)).strip()

    def health(self, service: str) -> str:
        """What the engine says of the service's health; "" without a container or a check."""
        template = "{{if .State.Health}}{{.State.Health.Status}}{{end}}"
        return self.inspect(service, template) if self.container(service) else ""

    def exec(self, service: str, *command: str, **options: Any) -> str:
        """The output of a command inside the service's container."""
        return self.compose("exec", "--no-TTY", service, *command, **options)

    def manage_django(self, arguments: str, **environ: str) -> str:
        """`make manage`'s own command, in this project."""
        variables = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
        command = ("python", "-m", "wsgi_app.django_site", *arguments.split())
        return self.compose("run", "--rm", *variables, "django", *command)

    def log(self, service: str = "") -> str:
        """What the service printed."""
        return self.compose("logs", "--no-color", *filter(None, [service]))

    def recent_log(self, since: float) -> str:
        """What its containers are, and what they printed since that time."""
        tail = ("logs", "--no-color", "--timestamps", "--tail", "50", "--since", str(int(since)))
        return self.compose("ps", "--all", expect=None) + self.compose(*tail, expect=None)

    def stop(self, service: str) -> int:
        """Stop as an operator does; the exit code."""
        run("docker", "stop", self.container(service))
        return int(self.inspect(service, "{{.State.ExitCode}}"))

    def start(self, service: str) -> None:
        """Start it again and wait until it is healthy."""
        self.compose("up", "--detach", "--wait", "--no-build", service)

    def down(self) -> None:
        """Remove everything, data and images too."""
        # By force, so that a container which hangs does not delay the end.
        label = f"label=com.docker.compose.project={self.project}"
        containers = run("docker", "ps", "--all", "--quiet", "--filter", label).split()
        if containers := self.neighbours + containers:
            run("docker", "rm", "--force", *containers)
        self.compose("down", "--volumes", "--remove-orphans")
        # All versions of this project's images, and no base image; `--rmi` cannot do that.
        names = ("--filter", f"reference={self.project}-*", "--format", "{{.Repository}}:{{.Tag}}")
        if images := run("docker", "image", "ls", *names).split():
            run("docker", "rmi", *images)


class Clone(Containers):
    """The Compose project of a copy of the repository."""

    def __init__(self, directory: Path, *files: Path, **environ: str) -> None:
        super().__init__(*files, **environ)
        shutil.copytree(ROOT, directory, ignore=HOUSEKEEPING)
        self.files[1] = str(directory / "docker-compose.yml")
        self.directory = directory
        self.boot: dict[str, str] = {}


def up_until_teardown[Stack: Containers](stack: Stack, *services: str) -> Iterator[Stack]:
    """The body of a fixture: the stack, started, and removed with its data and images at the end."""
    try:
        stack.up(*services)
        yield stack
    finally:
        stack.down()


def python_image() -> str:
    """The base image that the Dockerfile names."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    return re.search(r"^FROM (\S+) AS python-default", dockerfile, re.MULTILINE)[1]


def inside(stack: Containers, service: str, program: str, *arguments: str) -> Any:
    """What a Python program inside the service's container prints as JSON."""
    return json.loads(stack.exec(service, "python", "-c", program, *arguments))


def processes(stack: Containers, service: str) -> list[dict[str, list[str]]]:
    """The container's processes as /proc has them, init first, without those of `docker exec`."""
    found = inside(stack, service, PROCESSES)
    return sorted(
        (process for process in found if process["Pid"] == ["1"] or process["PPid"] != ["0"]),
        key=lambda process: int(process["Pid"][0]),
    )


def server_process(stack: Containers, service: str) -> dict[str, list[str]]:
    """The process that Docker's init started."""
    return next(process for process in processes(stack, service) if process["PPid"] == ["1"])


def children(stack: Containers, service: str) -> list[int]:
    """The pids of the server's worker processes."""
    found = processes(stack, service)
    server = next(process for process in found if process["PPid"] == ["1"])
    return [
        int(process["Pid"][0])
        for process in found
        # Spawned beside the workers; it serves nothing.
        if process["PPid"] == server["Pid"] and "resource_tracker" not in " ".join(process["Arguments"])
    ]


def program(stack: Containers, service: str) -> str:
    """The module that the server is, such as "serving.gunicorn"."""
    return server_process(stack, service)["Arguments"][2]


def assert_workers(stack: Containers, service: str) -> None:
    """The service has the workers that docs/choosing.md promises for its limits, and says so."""
    limits = stack.services[service]["deploy"]["resources"]["limits"]
    gunicorn = program(stack, service) == "serving.gunicorn"
    asyncio = ".uvicorn" in " ".join(server_process(stack, service)["Arguments"])
    fitting = int(limits["memory"]) // (128 * MEBIBYTE)
    expected = max(1, min(max(1 if asyncio else 2, ceil(float(limits["cpus"]))), fitting))
    # Uvicorn with one worker is that worker; Gunicorn's first process never serves.
    supervised = expected if gunicorn or expected > 1 else 0
    poll(lambda: len(children(stack, service)) == supervised, log=lambda: f"{limits}\n{stack.log(service)}")
    assert f"workers={expected} (" in stack.log(service), f"{service}, {limits}"


def complaints(log: str) -> list[str]:
    """The lines that an operator would look into; Caddy warns of settings that are meant as they are."""
    pattern = re.compile(r"\b(WARN(ING)?|ERROR|CRITICAL)\b|Traceback|\"level\": ?\"(?!info|warn\")")
    return [line for line in log.splitlines() if pattern.search(line)]


def running(stack: Containers) -> dict[str, list[str]]:
    """Each service's container and when it started."""
    return {service: stack.inspect(service, "{{.Id}} {{.State.StartedAt}}").split() for service in stack.urls}


def wait_until(stack: Containers, status: str, *services: str) -> None:
    """Wait until the engine calls every one of the services `status` ("healthy", "unhealthy")."""
    for service in services:
        poll(
            lambda name=service: stack.health(name) == status,
            60,
            lambda name=service: f"{name} is not {status}\n{stack.log(name)}",
        )


def remove_leftovers() -> None:
    """Remove what an interrupted worker of this test run could not remove."""
    prefix = f"test-{os.environ[RUN]}-"
    kinds = {
        ("ps", "--all", "--quiet", "--filter", f"name={prefix}"): ("rm", "--force", "--volumes"),
        ("network", "ls", "--quiet", "--filter", f"name={prefix}"): ("network", "rm"),
        ("volume", "ls", "--quiet", "--filter", f"name={prefix}"): ("volume", "rm"),
        ("image", "ls", "--quiet", "--filter", f"reference={prefix}*"): ("rmi", "--force"),
    }
    for find, remove in kinds.items():
        if found := run("docker", *find, expect=None, stderr=subprocess.DEVNULL).split():
            run("docker", *remove, *dict.fromkeys(found), expect=None)
