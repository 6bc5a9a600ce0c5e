"""`make deploy` and `make rollback`: replace the running version without losing a request.

    python3 deploy/rollout.py [--pull] [VERSION]
    python3 deploy/rollout.py --rollback
    python3 deploy/rollout.py --prune

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
# A line NAME=value or NAME: value; a value in quotes may have several lines.
ASSIGNMENT = re.compile(
    r"^\ufeff?[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][\w.-]*)[ \t]*[=:][ \t]*"
    r"(?P<value>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^\r\n]*)",
    re.MULTILINE | re.DOTALL,
)
# What follows a value without quotes: blanks, and a comment.
COMMENT = re.compile(r"[ \t]+(?:#.*)?$")
# Holds requests while the services behind it are replaced, so it keeps running.
EDGE = "edge"
# Seconds that a candidate may take to become healthy, and that it must then stay healthy.
HEALTHY_WITHIN, HEALTHY_FOR = 120, 5
# The packages of Debian or Alpine, and what else a base image is for.
LIST_INSTALLED = (
    "exec 2>/dev/null; dpkg-query --show || apk info --verbose; python --version || caddy version"
)
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


class EnvFile:
    """VERSION and PREVIOUS_VERSION in .env; everything else in that file stays as it is.

    Compose reads the file in many forms (`NAME=value`, `NAME: value`, quotes, values of several lines).
    check() compares what this class finds with what Compose finds: where they differ, nothing changes.
    """

    def read(self) -> str:
        """The text of the file; "" if there is none."""
        content = ENV_FILE.read_bytes() if ENV_FILE.exists() else b""
        return content.decode("utf-8", "surrogateescape")

    def get(self, name: str) -> str:
        """The value of a variable; "" if it is not set."""
        values = [found["value"] for found in ASSIGNMENT.finditer(self.read()) if found["name"] == name]
        value = values[-1] if values else ""
        return value[1:-1] if value[:1] in ("'", '"') else COMMENT.sub("", value)

    def changed(self, values: dict[str, str]) -> str:
        """The text with these values; a variable without a line gets one at the top, for those below."""
        text = self.read()
        for name, value in values.items():
            pieces, end = [], 0
            for found in ASSIGNMENT.finditer(text):
                if found["name"] == name:
                    old = found["value"]
                    quote = old[:1] if old[:1] in ("'", '"') else ""
                    rest = quote or "".join(COMMENT.findall(old))
                    pieces += [text[end : found.start("value")], quote, value, rest]
                    end = found.end("value")
            text = "".join([*pieces, text[end:]])
            if not pieces:
                newline = "\r\n" if "\r\n" in text else "\n"
                mark = "\ufeff" if text.startswith("\ufeff") else ""
                text = f"{mark}{name}={value}{newline}{text[len(mark) :]}"
        return text

    def draft(self, values: dict[str, str]) -> Path:
        """A file next to .env with these values, for its place; on the disk, and for the same readers."""
        path = ENV_FILE.resolve()
        draft = path.with_name(".env.draft")
        before = path.stat() if path.exists() else None
        try:
            # It may hold secrets: no one else can read it before it has the mode of the old one.
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                if before:
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                    os.fchmod(file.fileno(), before.st_mode & 0o7777)
                file.write(self.changed(values).encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if draft.is_file():
                draft.unlink()
            sys.exit(f"{draft}: must be writable: {error.strerror}; nothing was replaced")
        return draft

    def check(self) -> None:
        """Exit unless Compose finds the values that this class finds."""
        self.compare({name: self.get(name) for name in ("VERSION", "PREVIOUS_VERSION")})

    def check_change(self, values: dict[str, str]) -> None:
        """Exit unless .env can be replaced, and Compose would find these values in the new one."""
        draft = self.draft(values)
        try:
            self.compare(values, "--env-file", str(draft))
        finally:
            draft.unlink()

    def compare(self, values: dict[str, str], *options: str) -> None:
        """Exit unless Compose finds these values."""
        references = {name: f"${{{name}-}}" for name in values}
        project = {"services": {"values": {"image": "scratch", "environment": references}}}
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            json.dump(project, file)
            file.flush()
            arguments = ("--file", file.name, "--project-directory", ".", "config", "--format", "json")
            output = docker("compose", *options, *arguments).stdout
        found = json.loads(output)["services"]["values"]["environment"]
        for name, value in values.items():
            if found[name] != value:
                fix = f"must be one line {name}=... in .env, which this program can change"
                sys.exit(f".env: {name}={value!r}, but Compose reads {found[name]!r}: {fix}")

    def save(self, values: dict[str, str]) -> None:
        """Replace the file in one step, so that it is whole whenever this program or the machine stops."""
        draft = self.draft(values)
        draft.replace(ENV_FILE.resolve())
        directory = os.open(draft.parent, os.O_RDONLY)
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

    def build_or_pull(self, build: bool, newest_base: bool) -> None:
        """Build the images from the sources that are here; pull images that are not here.

        `newest_base`: fetch the base images again and say what changes with them.
        """
        services = [*self.one_shots, *self.replaced]
        buildable = {*services, EDGE} & set(self.definitions) if build else set()
        if sources := sorted(name for name in buildable if self.has_sources(name)):
            docker("compose", "build", *(["--pull"] if newest_base else []), *sources)
            if newest_base:
                self.report_changes(sources)
        for image in sorted({self.definitions[name]["image"] for name in services}):
            if docker("image", "inspect", image, check=False).returncode:
                docker("pull", image)

    def report_changes(self, services: list[str]) -> None:
        """Say what differs between the images that run and those that have been built."""
        changes: dict[tuple[str, ...], list[str]] = {}
        for service in services:
            old = {line for container in self.replicas(service) for line in installed(container["Image"])}
            new = set(installed(self.definitions[service]["image"]))
            lines = tuple(f"  {'+' if line in new else '-'} {line}" for line in sorted(old ^ new))
            changes.setdefault(lines, []).append(service)
        for lines, names in changes.items():
            what = "changed packages" if lines else "no changed packages"
            print("\n".join([f"{', '.join(names)}: {what}", *lines]), flush=True)

    def remove_images(self, keep: set[str]) -> None:
        """Remove the images of this project that have other names than these, and those without a name."""
        repositories = {image.rpartition(":")[0] for image in keep}
        for repository in sorted(repositories):
            names = ("--filter", f"reference={repository}", "--format", "{{.Repository}}:{{.Tag}}")
            for image in sorted(set(docker("image", "ls", *names).stdout.split()) - keep):
                removed = docker("image", "rm", image, check=False)
                print(f"{image}: {removed.stderr or 'removed'}", flush=True)
        label = f"label=com.docker.compose.project={self.name}"
        print(docker("image", "prune", "--force", "--filter", label).stdout, flush=True)

    def built_images(self) -> set[str]:
        """The names of the images that this project builds, without those that a digest fixes."""
        images = {service["image"] for service in self.definitions.values() if "build" in service}
        return {image for image in images if "@" not in image}

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


def installed(image: str) -> list[str]:
    """The packages of an image's distribution, and the version of Python or Caddy."""
    options = ("--rm", "--network", "none", "--entrypoint", "sh")
    return docker("run", *options, image, "-c", LIST_INSTALLED, check=False).stdout.splitlines()


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
    parser.add_argument("--pull", action="store_true", help="build on the newest base images")
    parser.add_argument("--rollback", action="store_true", help="return to PREVIOUS_VERSION in .env")
    parser.add_argument("--prune", action="store_true", help="remove the images of versions before that one")
    arguments = parser.parse_args()
    try:
        lock_project()
        exit_on_signals()
        # The file decides; the version of the command line is an argument.
        for name in ("VERSION", "PREVIOUS_VERSION"):
            os.environ.pop(name, None)
        if arguments.prune:
            prune()
        else:
            deploy(arguments)
    except OSError as error:
        sys.exit(f"{error.filename or 'rollout.py'}: {error.strerror}")


def prune() -> None:
    """Remove the images of all versions but the current one and the one before."""
    env_file = EnvFile()
    env_file.check()
    current, previous = env_file.get("VERSION") or "latest", env_file.get("PREVIOUS_VERSION")
    keep: set[str] = set()
    for version in filter(None, (previous, current)):
        project = Deployment(resolve_project(version))
        keep |= project.built_images()
    project.remove_images(keep)


def deploy(arguments: argparse.Namespace) -> None:
    """Replace the running version."""
    env_file = EnvFile()
    env_file.check()
    current, previous = env_file.get("VERSION") or "latest", env_file.get("PREVIOUS_VERSION")
    if arguments.rollback and previous in ("", current):
        sys.exit("there is no previous version to return to: .env has no PREVIOUS_VERSION")
    version = previous if arguments.rollback else arguments.version
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", version):
        sys.exit(f"VERSION={version!r}: must be an image tag: ASCII letters, digits, '_', '.' and '-'")
    env_file.check_change({"PREVIOUS_VERSION": current, "VERSION": version})

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
    new.build_or_pull(build=version not in (current, previous), newest_base=arguments.pull)
    new.check_networks()
    new.report_left_alone()
    if not arguments.rollback:
        new.run_one_shots()
    print(f"{', '.join(new.replaced)}: try {version}", flush=True)
    new.try_candidates()

    # From here on the replacement is completed, whatever signal arrives.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    served = {"PREVIOUS_VERSION": current} if current_has_served and version != current else {}
    env_file.save({**served, "VERSION": version})
    new.replace()
    for service in new.replaced:
        print(f"{service}: {version}", flush=True)


if __name__ == "__main__":
    main()
