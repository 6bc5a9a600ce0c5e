"""`make deploy` and `make rollback`: replace the running version without losing a request.

    python3 deploy/rollout.py [VERSION | --rollback]

Run it in the directory of docker-compose.yml; it needs Docker Compose and Python 3.9 or newer. It
replaces the services whose image this project builds, and no other; docs/deploy.md explains the steps:

1. Build the images, or pull them if there are no sources.
2. Run the one-shot services that they depend on, such as database migrations. Not for a rollback.
3. Start a candidate of each service, out of the edge's sight, and wait until it is healthy and stays so.
   If any step up to here fails or is interrupted, nothing has been replaced.
4. Write VERSION and PREVIOUS_VERSION to .env and replace the replicas with `docker compose up`. The edge
   holds the requests that arrive meanwhile, and the old replicas finish theirs.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ENV_FILE = Path(".env")
# Holds requests while the services behind it are replaced, so it keeps running.
EDGE = "edge"
# Seconds that a candidate may take to become healthy, and that it must then stay healthy.
HEALTHY_WITHIN, HEALTHY_FOR = 120, 5
STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# Locked while this program, or a command that it started, runs.
PROJECT_DIRECTORY = os.open(".", os.O_RDONLY)


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a docker command; unless `check` is false, exit with its output if it fails.

    The command writes to files, not to pipes, and has a session of its own: it finishes even if this
    program is killed. Until then it holds the lock, so that no second deployment interferes.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        result = subprocess.run(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=[PROJECT_DIRECTORY],
            check=False,
        )
        for file in (stdout, stderr):
            file.seek(0)
        output, errors = stdout.read().strip(), stderr.read().strip()
    if check and result.returncode:
        sys.exit(f"docker {' '.join(arguments)}: exit code {result.returncode}\n{errors}\n{output}")
    return subprocess.CompletedProcess(result.args, result.returncode, output, errors)


def compose(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a docker compose command, also for services whose profile is not active."""
    return docker("compose", "--profile", "*", *arguments, check=check)


def resolve_project(version: str) -> dict[str, Any]:
    """The resolved compose files for this version, which later commands use as well."""
    os.environ["VERSION"] = version
    project: dict[str, Any] = json.loads(compose("config", "--format", "json").stdout)
    return project


def inspect(*containers: str) -> list[dict[str, Any]]:
    """What the engine knows about these containers."""
    found: list[dict[str, Any]] = json.loads(docker("inspect", *containers).stdout) if containers else []
    return found


class Settings:
    """VERSION and PREVIOUS_VERSION in .env; everything else in that file stays as it is."""

    def __init__(self) -> None:
        content = ENV_FILE.read_bytes() if ENV_FILE.exists() else b""
        self.text = content.decode("utf-8", "surrogateescape")

    def line(self, name: str) -> re.Pattern[str]:
        """Matches the variable's line up to its value, which is the second group."""
        return re.compile(rf"(?m)^(\ufeff?[ \t]*(?:export[ \t]+)?{name}[ \t]*=[ \t]*[\"']?)([^\s\"'#]*)")

    def get(self, name: str) -> str:
        """The value of a variable; "" if it is not set."""
        values = self.line(name).findall(self.text)
        return values[-1][1] if values else ""

    def set(self, name: str, value: str) -> None:
        """Replace the value; without one, add a line at the top, where the lines below can refer to it."""
        self.text, count = self.line(name).subn(rf"\g<1>{value}", self.text)
        if not count:
            newline = "\r\n" if "\r\n" in self.text else "\n"
            mark = "\ufeff" if self.text.startswith("\ufeff") else ""
            self.text = f"{mark}{name}={value}{newline}{self.text[len(mark) :]}"

    def save(self) -> None:
        """Replace the file in one step, so that it is whole whenever this program or the machine stops."""
        path = ENV_FILE.resolve()
        draft = path.with_name(".env.draft")
        before = path.stat() if path.exists() else None
        # It may hold secrets: no one else can read it before it has the mode of the old one.
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            if before:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o7777)
            file.write(self.text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


class Deployment:
    """The services that a version replaces, and the one-shot services that run before them."""

    def __init__(self, project: dict[str, Any]) -> None:
        self.name: str = project["name"]
        self.definitions: dict[str, dict[str, Any]] = project["services"]
        self.networks = {key: network["name"] for key, network in project.get("networks", {}).items()}
        label = f"label=com.docker.compose.project={self.name}"
        self.containers = inspect(*docker("ps", "--all", "--quiet", "--filter", label).stdout.split())
        built = {
            service["image"] for service in self.definitions.values() if {"build", "image"} <= set(service)
        }
        one_shots = {name for service in self.definitions for name in self.one_shots_before(service)}
        present = {name for name in self.definitions if self.replicas(name)} - one_shots
        self.replaced = sorted(
            name for name in present - {EDGE} if self.definitions[name].get("image") in built
        )
        self.left_alone = sorted(present - set(self.replaced))
        before = [name for service in self.replaced for name in self.one_shots_before(service)]
        self.one_shots = list(dict.fromkeys(before))

    def one_shots_before(self, service: str) -> list[str]:
        """The one-shot services that a service depends on, each after those that it depends on itself."""
        found: list[str] = []
        for name, dependency in self.definitions[service].get("depends_on", {}).items():
            if dependency["condition"] == "service_completed_successfully":
                found += [*self.one_shots_before(name), name]
        return found

    @staticmethod
    def service_of(container: dict[str, Any]) -> str:
        """The name of the container's service."""
        return str(container["Config"]["Labels"]["com.docker.compose.service"])

    def replicas(self, service: str) -> list[dict[str, Any]]:
        """The service's containers, without those of `docker compose run`."""
        return [
            container
            for container in self.containers
            if self.service_of(container) == service
            and container["Config"]["Labels"]["com.docker.compose.oneoff"] == "False"
        ]

    def candidate(self, service: str) -> str:
        """The name of the service's candidate."""
        return f"{self.name}-{service}-candidate"

    def runs(self) -> bool:
        """Whether every replica runs this version and is healthy."""
        replicas = [(name, container) for name in self.replaced for container in self.replicas(name)]
        return all(
            container["Config"]["Image"] == self.definitions[name]["image"] and is_healthy(container)
            for name, container in replicas
        )

    def keep_images(self) -> None:
        """Let this version's image names mean what runs now, even if they have been built again since."""
        for service in self.replaced:
            for container in self.replicas(service):
                if "@" not in container["Config"]["Image"]:
                    docker("tag", container["Image"], container["Config"]["Image"])

    def remove_leftovers(self) -> None:
        """Remove what an interrupted deployment left: candidates, and containers that never started."""
        candidates = {self.candidate(service) for service in self.definitions}
        for container in self.containers:
            name = container["Name"].lstrip("/")
            # Compose gives a container that takes another one's place such a name until it starts.
            never_started = container["State"]["Status"] == "created" and re.match(r"[0-9a-f]{12}_", name)
            if name in candidates or (never_started and self.service_of(container) in self.replaced):
                docker("rm", "--force", "--volumes", name)

    def build_or_pull(self, build: bool) -> None:
        """Build the images from the sources that are here; pull images that are not here."""
        services = [*self.one_shots, *self.replaced]
        buildable = {*services, EDGE} & set(self.definitions) if build else set()
        if sources := sorted(name for name in buildable if self.has_sources(name)):
            docker("compose", "build", *sources)
        for image in sorted({self.definitions[name]["image"] for name in services}):
            if docker("image", "inspect", image, check=False).returncode:
                docker("pull", image)

    def has_sources(self, service: str) -> bool:
        """Whether the service's Dockerfile is on this machine."""
        source = self.definitions[service].get("build") or {}
        return (
            "context" in source and Path(source["context"], source.get("dockerfile", "Dockerfile")).is_file()
        )

    def check_networks(self) -> None:
        """Exit if the edge would not find a service, or if Compose would remove a network in use."""
        attached = {name for edge in self.replicas(EDGE) for name in edge["NetworkSettings"]["Networks"]}
        for service in self.replaced:
            networks = {self.networks[key] for key in self.definitions[service].get("networks") or {}}
            if attached and networks and not attached & networks:
                sys.exit(
                    f"{service}: the running edge is in none of its networks. Nothing was replaced; run "
                    "`docker compose up --detach --wait` for this change"
                )
        preview = compose(
            "--dry-run", "up", "--detach", "--no-build", "--no-deps", *self.replaced, check=False
        )
        for network in re.findall(r"Network (\S+)\s+Remov", preview.stderr):
            sys.exit(
                f"{network}: the definition of this network has changed, which stops every service in it. "
                "Nothing was replaced; run `docker compose up --detach --wait` for this change"
            )

    def report_left_alone(self) -> None:
        """Say which running services are not replaced, and which of them a plain `up` would replace."""
        if not self.left_alone:
            return
        print(f"left alone: {', '.join(self.left_alone)}", flush=True)
        preview = compose(
            "--dry-run", "up", "--detach", "--no-build", "--no-deps", *self.left_alone, check=False
        )
        changed = set(re.findall(r"Container (\S+)\s+Recreate$", preview.stderr, re.MULTILINE))
        for service in self.left_alone:
            if changed & {container["Name"].lstrip("/") for container in self.replicas(service)}:
                command = f"docker compose up --detach --wait --no-build --no-deps {service}"
                print(f"{service}: its definition or image has changed; to replace it: {command}", flush=True)

    def run_one_shots(self) -> None:
        """Run each one-shot service to its end."""
        for service in self.one_shots:
            print(f"{service}: run", flush=True)
            command = ("run", "--rm", "--no-TTY", "--no-deps", "--pull", "never", service)
            print(compose(*command).stdout, flush=True)

    def start_candidate(self, service: str) -> None:
        """Start a container that has neither the service's name in the network nor a number for the edge."""
        name = ("--name", self.candidate(service), "--env", "DRAIN_SECONDS=0")
        # A signal must wait until the container has its name, or its removal would come too early.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            compose("run", "--detach", "--no-deps", "--pull", "never", *name, service)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def try_candidates(self) -> None:
        """Start a candidate of each service, wait until all are healthy and stay so, and remove them.

        A service without a health check gets none: it may be a worker or a scheduler, of which a second one
        would do real work.
        """
        services = [
            name for name in self.replaced if self.definitions[name].get("healthcheck", {}).get("test")
        ]
        candidates = [self.candidate(service) for service in services]
        try:
            for service in services:
                self.start_candidate(service)
            for candidate in candidates:
                wait_until_healthy(candidate)
            time.sleep(HEALTHY_FOR if candidates else 0)
            for candidate in candidates:
                wait_until_healthy(candidate)
        finally:
            # A signal that arrives during the clean-up takes effect after it.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            if candidates:
                docker("rm", "--force", "--volumes", *candidates, check=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def replace(self) -> None:
        """Replace all replicas; the number of each service's replicas stays."""
        scale: list[str] = []
        for service in self.replaced:
            label = "com.docker.compose.container-number"
            numbers = {container["Config"]["Labels"][label] for container in self.replicas(service)}
            scale += ["--scale", f"{service}={max(1, len(numbers))}"]
        options = ("--detach", "--wait", "--no-build", "--no-deps", *scale)
        result = compose("up", *options, *self.replaced, check=False)
        if result.returncode:
            logs = compose("logs", "--tail", "20", *self.replaced, check=False).stdout
            sys.exit(f"{result.stderr}\n{logs}\ndocker compose up has failed; make rollback leads back")


def is_healthy(container: dict[str, Any]) -> bool:
    """Whether a container runs, has not been restarted, and its health check, if any, succeeds."""
    health = container["State"].get("Health", {"Status": "healthy"})
    return bool(container["State"]["Running"] and health["Status"] == "healthy")


def wait_until_healthy(candidate: str) -> None:
    """Return when the candidate is healthy; exit with the reason and its last log lines if it fails."""
    deadline = time.monotonic() + HEALTHY_WITHIN
    while True:
        (container,) = inspect(candidate)
        state = container["State"]
        health = state.get("Health", {})
        if not state["Running"] or container["RestartCount"]:
            reason = f"ended with exit code {state['ExitCode']}"
        elif health.get("Status") == "unhealthy" or time.monotonic() > deadline:
            output = [probe["Output"].strip() for probe in health.get("Log") or []]
            reason = f"not healthy: {output[-1] if output else 'no health check has finished'}"
        elif is_healthy(container):
            return
        else:
            time.sleep(0.2)
            continue
        logs = docker("logs", "--tail", "20", candidate, check=False)
        sys.exit(f"{candidate}: {reason}\n{logs.stdout}\n{logs.stderr}\nNothing was replaced.")


def lock_project() -> None:
    """Exit if another deployment of this project runs."""
    try:
        fcntl.flock(PROJECT_DIRECTORY, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another deployment of this project is running; try again when it has finished")


def exit_on_signals() -> None:
    """Let a signal end the program through its clean-up; `nohup` stays in effect."""

    def stop(number: int, _frame: object) -> None:
        sys.exit(f"{signal.Signals(number).name}: nothing was replaced")

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version", nargs="?", default=time.strftime("%Y%m%d-%H%M%S"))
    parser.add_argument("--rollback", action="store_true", help="return to PREVIOUS_VERSION in .env")
    arguments = parser.parse_args()
    lock_project()
    exit_on_signals()

    settings = Settings()
    current, previous = settings.get("VERSION") or "latest", settings.get("PREVIOUS_VERSION")
    if arguments.rollback and previous in ("", current):
        sys.exit("there is no previous version to return to: .env has no PREVIOUS_VERSION")
    version = previous if arguments.rollback else arguments.version
    if not re.fullmatch(r"\w[\w.-]{0,127}", version):
        sys.exit(f"VERSION={version!r}: must be an image tag: letters, digits, '_', '.' and '-'")

    running = Deployment(resolve_project(current))
    if not running.replaced:
        sys.exit("nothing to replace: start the services with docker compose up --detach --wait")
    running.remove_leftovers()
    current_has_served = running.runs()
    if current_has_served:
        running.keep_images()

    new = Deployment(resolve_project(version))
    if version in (current, previous):
        print(
            f"{version}: these images exist and are not built again; new code needs a new VERSION", flush=True
        )
    new.build_or_pull(build=version not in (current, previous))
    new.check_networks()
    new.report_left_alone()
    if not arguments.rollback:
        new.run_one_shots()
    print(f"{', '.join(new.replaced)}: try {version}", flush=True)
    new.try_candidates()

    # From here on the replacement is completed, whatever signal arrives.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    if current_has_served and version != current:
        settings.set("PREVIOUS_VERSION", current)
    settings.set("VERSION", version)
    settings.save()
    new.replace()
    for service in new.replaced:
        print(f"{service}: {version}", flush=True)


if __name__ == "__main__":
    main()
