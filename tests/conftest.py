"""Real servers for the tests: containers, local processes, and single servers."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest

ROOT = Path(__file__).parent.parent
# Passes connections on to the services, each on a port of its own: a neighbour in the network.
RELAY = """
import asyncio, sys

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()

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
# What `make up` runs: service -> what follows `python -m`.
PROGRAMS = {
    service: tuple(command.split())
    for service, command in re.findall(
        r"^\[program:(\S+)\]\ncommand = \S+/python -m (.*)$",
        (ROOT / "deploy/supervisord.conf").read_text(),
        re.MULTILINE,
    )
}
GIVEN: set[int] = set()
HOUSEKEEPING = shutil.ignore_patterns(".git", ".venv", ".run", ".data", ".env", ".*_cache", "__pycache__")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on; never twice, as they are used later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if port in GIVEN:
        return free_port()
    GIVEN.add(port)
    return port


def poll(check: Callable[[], Any], seconds: float = 20, log: Callable[[], str] = str) -> Any:
    """The first true result of `check`; fails with the log when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (result := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {check}\n{log()}")
        time.sleep(0.05)
    return result


def run(*command: str | Path, expect: int | None = 0, **options: Any) -> str:
    """A command's combined output; fails with it unless the exit code is the expected one."""
    options = {"cwd": ROOT, "timeout": 300, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    result = subprocess.run([str(word) for word in command], text=True, check=False, **options)
    if expect is not None and result.returncode != expect:
        pytest.fail(f"{command}: exit code {result.returncode}, expected {expect}\n{result.stdout}")
    return result.stdout


def lacking(reason: str) -> NoReturn:
    """Skip for what this machine lacks; fail where REQUIRE_DOCKER=1 says that everything is there."""
    if os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def answers(url: str) -> bool:
    """Whether something at `url` answers below 400."""
    try:
        return httpx2.get(url, trust_env=False).status_code < 400
    except httpx2.HTTPError:
        return False


def addresses(services: Iterable[str], ports: Mapping[str, str]) -> dict[str, str]:
    """Where each of the services answers over plain HTTP; `ports` by variable."""
    variables = {service: f"{service.upper().replace('-', '_')}_PORT" for service in services}
    return {name: f"http://127.0.0.1:{ports[port]}" for name, port in variables.items() if port in ports}


class Server:
    """One server process, started as a user would, on a free port of 127.0.0.1."""

    def __init__(self, *command: str, cwd: Path = ROOT, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        base = {name: value for name, value in os.environ.items() if name not in ("HOST", "PORT")}
        self._log = (Path(os.environ["PYTEST_LOGS"]) / f"{self.port}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=cwd,
            env=base | {"PORT": str(self.port), "DRAIN_FILE": self._log.name + ".draining"} | environ,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def log(self) -> str:
        """What it printed so far."""
        return Path(self._log.name).read_text()

    def wait(self, path: str = "/livez") -> "Server":
        """Return when it answers; fail with its log when it ends or stays silent."""

        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode}\n{self.log()}")
            return answers(self.url + path)

        try:
            poll(ready, log=self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def exit_code(self, seconds: float = 20) -> int:
        """Its exit code; fails with its log when it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s\n{self.log()}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(35)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._log.close()


class Containers:
    """The Compose project under a name, ports and volumes of its own."""

    runtime = "docker"

    def __init__(self, *files: Path, **environ: str) -> None:
        self.project = f"test-{secrets.token_hex(4)}"
        self.files = [
            word for file in (ROOT / "docker-compose.yml", *files) for word in ("--file", str(file))
        ]
        self.environ = os.environ | environ
        # Which variables move ports is Compose's business: ask it, then move every one.
        variables = run("docker", "compose", *self.files, "config", "--variables").split()
        self.ports = {name: str(free_port()) for name in variables if name.endswith("_PORT")}
        self.environ |= self.ports
        self.services = self.config()["services"]
        self.urls = addresses(self.services, self.ports)
        self._direct: dict[str, str] = {}
        self.neighbours: list[str] = []

    def compose(self, *arguments: str, **options: Any) -> str:
        """The output of `docker compose ARGUMENTS` for this project."""
        command = ("docker", "compose", "--project-name", self.project, *self.files, *arguments)
        return run(*command, env=self.environ, **options)

    def config(self) -> dict:
        """The resolved file."""
        return json.loads(self.compose("config", "--format", "json"))

    def up(self, *services: str, **options: Any) -> str:
        """Build, start and wait, also for what stands before the services; fails with the logs."""
        # copier: if edge
        services = ("edge", *services) if services else ()
        # copier: endif
        output = self.compose("up", "--build", "--detach", "--wait", *services, expect=None, **options)
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
        """Run a container of this name in the services' network until `down`."""
        self.neighbours.append(name)
        network = ("--network", f"{self.project}_default")
        image = re.search(r"PYTHON_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text())[1]
        run("docker", "run", "--detach", "--name", name, *network, *options, image, *command)

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

    # copier: if "django" in stacks
    def manage(self, arguments: str, **environ: str) -> str:
        """`make manage`'s own command, in this project."""
        variables = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
        command = ("python", "-m", "wsgi_app.django_site", *arguments.split())
        return self.compose("run", "--rm", *variables, "django", *command)

    # copier: endif
    def log(self, service: str = "") -> str:
        """What the service printed."""
        return self.compose("logs", "--no-color", *filter(None, [service]))

    def stop(self, service: str) -> int:
        """Stop as an operator does; the exit code."""
        run("docker", "stop", self.container(service))
        return int(self.inspect(service, "{{.State.ExitCode}}"))

    def start(self, service: str) -> None:
        """Start it again and wait until it is healthy."""
        self.compose("up", "--detach", "--wait", "--no-build", service)

    def down(self) -> None:
        """Remove everything, data and images too."""
        # By force: one that crashes while its pre_stop runs fails `down`, as the Makefile knows.
        label = f"label=com.docker.compose.project={self.project}"
        containers = run("docker", "ps", "--all", "--quiet", "--filter", label).split()
        if containers := self.neighbours + containers:
            run("docker", "rm", "--force", *containers)
        self.compose("down", "--volumes", "--remove-orphans")
        # Of all versions, but nobody else's, as the base image: `--rmi` knows no such middle.
        names = ("--filter", f"reference={self.project}-*", "--format", "{{.Repository}}:{{.Tag}}")
        if images := run("docker", "image", "ls", *names).split():
            run("docker", "rmi", *images)


class Processes:
    """`make up RUNTIME=process` in a copy of the repository, on ports of its own."""

    runtime = "process"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(ROOT, directory, ignore=HOUSEKEEPING, dirs_exist_ok=True)
        (directory / ".venv").symlink_to(ROOT / ".venv")
        ports = {name: str(free_port()) for name in PROGRAMS}
        self.environ = os.environ | {f"{name.upper()}_PORT": port for name, port in ports.items()}
        self.environ.pop("MAKEFLAGS", None)
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

    def direct(self, service: str) -> str:
        """The service's address: nothing stands before it."""
        return self.urls[service]

    def make(self, *arguments: str, **options: Any) -> str:
        """The output of `make ARGUMENTS RUNTIME=process`."""
        return run("make", *arguments, "RUNTIME=process", cwd=self.directory, env=self.environ, **options)

    def up(self) -> str:
        """Start and wait."""
        return self.make("up")

    def control(self, *arguments: str, **options: Any) -> str:
        """The output of `supervisorctl ARGUMENTS`."""
        program = self.directory / ".venv/bin/supervisorctl"
        options = {"cwd": self.directory, "env": self.environ} | options
        return run(program, "-c", "deploy/supervisord.conf", *arguments, **options)

    # copier: if "django" in stacks
    def manage(self, arguments: str, **environ: str) -> str:
        """`make manage` in this copy."""
        command = ("make", "manage", f"ARGS={arguments}", "RUNTIME=process")
        return run(*command, cwd=self.directory, env=self.environ | environ)

    # copier: endif
    def log(self, service: str = "*") -> str:
        """What the service printed."""
        return "\n".join(path.read_text() for path in (self.directory / ".run").glob(f"{service}.log"))

    def stop(self, service: str) -> int:
        """Stop as an operator does; the exit code."""
        self.control("stop", service)
        last = [line for line in self.log("supervisord").splitlines() if f"stopped: {service} (" in line][-1]
        return int(last.rpartition("exit status ")[2].rstrip(")")) if "exit status" in last else -1

    def start(self, service: str) -> None:
        """Start it again and wait until it is ready."""
        self.control("start", service)
        poll(lambda: answers(self.urls[service] + "/readyz"), log=lambda: self.log(service))

    def down(self) -> None:
        """Stop everything."""
        self.make("down")


Stack = Containers | Processes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line per reason what was skipped."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} tests skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture(scope="session", autouse=True)
def logs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where single servers write to."""
    os.environ["PYTEST_LOGS"] = str(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip without a Docker engine; fail instead where REQUIRE_DOCKER=1 says that one must be there."""
    try:
        answered = not subprocess.run(
            ["docker", "info"], capture_output=True, timeout=20, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        answered = False
    if not answered:
        lacking("no Docker engine answers")


@pytest.fixture(scope="session")
def containers(engine: None) -> Iterator[Containers]:
    """Every service in its container; shared, so leave it as it was."""
    stack = Containers(COMPOSE_PROFILES="*")
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Every service as a local process; shared, so leave it as it was."""
    stack = Processes(tmp_path_factory.mktemp("processes"))
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """A client that keeps cookies and follows no redirect."""
    with httpx2.Client(trust_env=False) as client:
        yield client


@pytest.fixture(params=["processes", "containers"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Every service, in both runtimes."""
    return request.getfixturevalue(request.param)
