"""What the project in a directory would run, from the files that are there; checks/doctor.py judges it.

The Compose file as Compose resolves it, the Dockerfile, the servers' settings as the servers arrive at
them, the edge's Caddyfile, supervisord.conf and the .env files. What cannot be read is reported, not guessed.
"""

import configparser
import json
import os
import re
import subprocess
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from checks import env_files, variables
from checks.caddyfile import Caddyfile
from checks.dockerfile import Dockerfile, Stage, expand
from checks.servers import Launch, Problem, Settings, Unreadable, Value, number, read_gunicorn, read_uvicorn
from checks.variables import has_compose
from serving import sizing
from serving.settings import SettingError

COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
STACK_FILE = "deploy/swarm/stack.yml"
SUPERVISOR_FILES = ("deploy/process/supervisord.conf", "deploy/supervisord.conf", "supervisord.conf")
CADDY_FILES = ("deploy/edge/Caddyfile", "Caddyfile")
PROXY = re.compile("caddy|envoy|haproxy|httpd|nginx|traefik")
PROXY_SERVICE = re.compile(f"{PROXY.pattern}|edge|proxy")
# How many requests a Uvicorn process runs in threads at the same time (AnyIO's default).
UVICORN_THREADS = 40


@dataclass
class Container:
    """What would run: a service of Compose, else an image of the Dockerfile, else a server's file alone."""

    name: str
    file: str
    definition: dict[str, Any] = field(default_factory=dict)
    stage: Stage = field(default_factory=Stage)
    gunicorn: Settings | None = None
    # As a server of its own, or in Gunicorn's workers.
    uvicorn: Settings | None = None
    # Whether a variable of .env says that there shall be no limit of CPUs; Compose leaves out a 0.
    is_without_cpu_limit: bool = False

    @property
    def server(self) -> Settings | None:
        """The settings of the process that receives the engine's signals."""
        return self.gunicorn if self.gunicorn is not None else self.uvicorn

    @property
    def command(self) -> list[str]:
        """What it executes, from Compose or from the image."""
        words: list[str] = []
        for key, instruction in (("entrypoint", "ENTRYPOINT"), ("command", "CMD")):
            given = self.definition.get(key)
            words += [unescaped(word) for word in given] if given else self.stage_command(instruction)
        return words

    def stage_command(self, instruction: str) -> list[str]:
        """What the image executes for ENTRYPOINT or CMD."""
        return Stage(instructions={instruction: self.stage.instruction(instruction)}).command

    @property
    def environment(self) -> dict[str, str]:
        """Its variables, those of the image included."""
        given = self.definition.get("environment") or {}
        own = {name: unescaped(str(value)) if value is not None else "" for name, value in given.items()}
        return {**self.stage.environment, **own}

    @property
    def command_place(self) -> str:
        """Where its command is written."""
        if self.definition.get("command") or self.definition.get("entrypoint"):
            return f"{self.file}: {self.name}.command"
        return "Dockerfile: CMD"

    @property
    def is_built_here(self) -> bool:
        """Whether this project builds it, unlike a database's image."""
        return bool(self.definition) and ("build" in self.definition or self.server is not None)

    @property
    def is_long_running(self) -> bool:
        """Whether this project builds it and it is no one-shot."""
        return self.is_built_here and self.definition.get("restart") != "no"

    @property
    def is_proxy(self) -> bool:
        """Whether it is a reverse proxy, by its name, its image or its base image.

        The name of an image may begin with the project's name, which may contain "edge" or "proxy".
        """
        image = "" if self.server is not None else self.definition.get("image", "").rpartition("/")[2]
        found = PROXY.search(f"{image.partition(':')[0]} {self.stage.base}")
        return bool(found or PROXY_SERVICE.search(self.name))

    @property
    def is_postgres(self) -> bool:
        """Whether it is a PostgreSQL server."""
        return "postgres" in self.definition.get("image", "").rpartition("/")[2]

    @property
    def limits(self) -> dict[str, Any]:
        """Its limits by name, in either of Compose's spellings."""
        found = self.definition.get("deploy", {}).get("resources", {}).get("limits", {})
        names = {"cpus": "cpus", "memory": "mem_limit", "pids": "pids_limit"}
        return {name: found.get(name) or self.definition.get(old) for name, old in names.items()}

    @property
    def replicas(self) -> int:
        """How many containers of it run."""
        return int(self.definition.get("scale") or self.definition.get("deploy", {}).get("replicas") or 1)

    @property
    def temporary_folders(self) -> dict[str, int]:
        """Its folders in memory, with their sizes in bytes; 0 for no size."""
        found = {}
        for mount in self.definition.get("tmpfs", []):
            path, _, options = mount.partition(":")
            size = re.search(r"size=(\d+)([kmg]?)", options, re.IGNORECASE)
            found[path] = int(size[1]) * 1024 ** " kmg".index(size[2].lower() or " ") if size else 0
        for volume in self.definition.get("volumes", []):
            if volume.get("type") == "tmpfs":
                found[volume["target"]] = int(volume.get("tmpfs", {}).get("size") or 0)
        return found

    @property
    def workers(self) -> Value | None:
        """How many processes its server starts."""
        return self.server.value("workers", 1) if self.server is not None else None

    @property
    def threads(self) -> int:
        """How many requests one of these processes runs in threads at the same time."""
        if self.uvicorn is not None or self.gunicorn is None:
            return UVICORN_THREADS
        return int(number(self.gunicorn["threads"], 1))

    @property
    def graceful_timeout(self) -> Value | None:
        """Seconds that requests in flight get at a stop; None where there is no limit or no server."""
        name = "graceful_timeout" if self.gunicorn is not None else "timeout_graceful_shutdown"
        if self.server is None or self.server[name] is None:
            return None
        return self.server.value(name)

    @property
    def request_timeout(self) -> Value | None:
        """Seconds that one request gets at a stop: the shortest graceful timeout of its servers."""
        values = [self.graceful_timeout]
        if self.gunicorn is not None and self.uvicorn is not None:
            inner = self.uvicorn["timeout_graceful_shutdown"]
            values += [self.uvicorn.value("timeout_graceful_shutdown") if inner is not None else None]
        return min((value for value in values if value), key=lambda value: value.number, default=None)

    @property
    def drain_seconds(self) -> float:
        """Seconds that the server goes on serving after SIGTERM, before its graceful stop."""
        return number(self.environment.get("DRAIN_SECONDS") or 0)

    @property
    def keep_alives(self) -> list[Value]:
        """Seconds that each of its servers keeps an idle connection open."""
        found = []
        if self.gunicorn is not None and self.gunicorn["worker_class"] != "sync":
            found.append(self.gunicorn.value("keepalive"))
        if self.uvicorn is not None:
            found.append(self.uvicorn.value("timeout_keep_alive"))
        return found

    @property
    def boot_seconds(self) -> float:
        """Seconds in which a worker must boot, or its parent replaces it."""
        if self.uvicorn is not None:
            return number(self.uvicorn["timeout_worker_healthcheck"])
        return number(self.gunicorn["timeout"]) if self.gunicorn is not None else 0

    def describe(self, key: str, default: object = None) -> str:
        """`file: service.key=value`."""
        return f"{self.file}: {self.name}.{key}={self.definition.get(key, default)}"


@dataclass(frozen=True)
class SupervisedProgram:
    """A program of supervisord.conf; `stop_seconds` is None where a variable decides it."""

    name: str
    file: str
    stop_seconds: float | None


class Project:
    """The containers of a directory, what is broken, and what could not be read."""

    def __init__(self, directory: Path, *, env_file: Path | None = None) -> None:
        """`env_file` replaces the .env of the directory."""
        self.directory = directory
        self.not_checked: list[str] = []
        self.broken: list[str] = []
        self.env_file = env_file or directory / ".env"
        self.compose_file = next((name for name in COMPOSE_FILES if (directory / name).exists()), "")
        options = ["--env-file", str(env_file)] if env_file else []
        services = self.read_compose(options)
        self.variables = self.read_variables(options)
        self.dockerfile = self.read_dockerfile()
        self.containers = self.read_services(services) if services else self.read_images()
        # What a service adds to its image is not known while the Compose file is not.
        if services or not self.compose_file:
            for container in self.containers:
                self.read_command(container)
        self.read_lone_files()
        self.stack = self.read_stack(options)
        self.edge = next((it for it in self.containers if it.is_proxy and it.definition), None)
        self.caddyfile = self.read_caddyfile()
        self.programs = self.read_supervisor()

    def read_compose(self, options: list[str]) -> dict[str, dict[str, Any]]:
        """The services of the Compose file, those of every profile included."""
        if not self.compose_file:
            self.not_checked.append("docker-compose.yml: not here")
        elif not has_compose():
            self.not_checked.append(f"{self.compose_file}: no Docker Compose here to resolve it")
        else:
            return self.resolve(self.compose_file, ["--profile", "*", *options])
        return {}

    def resolve(self, file: str, options: list[str]) -> dict[str, dict[str, Any]]:
        """The services of a file as Compose resolves it; reports what Compose does not accept."""
        words = ["docker", "compose", *options, "config", "--format", "json"]
        found = subprocess.run(words, cwd=self.directory, capture_output=True, text=True)
        if not found.returncode:
            return dict(json.loads(found.stdout)["services"])
        self.broken.append(f"{file}: must be what Compose accepts: {found.stderr.strip()}")
        return {}

    def read_stack(self, options: list[str]) -> list[Container]:
        """The services of the stack for Docker Swarm; their images are those of the Compose file."""
        if not (self.directory / STACK_FILE).exists() or not has_compose():
            return []
        place = ["--project-directory", str(self.directory), "--file", STACK_FILE]
        stages = {it.name: it.stage for it in self.containers if it.definition}
        return [
            Container(name, STACK_FILE, definition, stages.get(name, Stage()))
            for name, definition in self.resolve(STACK_FILE, [*place, *options]).items()
        ]

    def read_variables(self, options: list[str]) -> dict[str, str]:
        """The variables of .env that checks/variables.py knows; read_compose reports what cannot be read."""
        try:
            return variables.read(self.directory, *options) if has_compose() else {}
        except SettingError:
            return {}

    def read_dockerfile(self) -> Dockerfile:
        """The Dockerfile of the directory; an empty one where there is none."""
        try:
            return Dockerfile((self.directory / "Dockerfile").read_text(encoding="utf-8"))
        except OSError:
            self.not_checked.append("Dockerfile: not here")
            return Dockerfile("")

    def read_services(self, services: dict[str, dict[str, Any]]) -> list[Container]:
        """A container for each service of Compose; a service may run the image that another one builds."""
        builds = {it["image"]: it["build"] for it in services.values() if {"image", "build"} <= it.keys()}
        containers = []
        for name, definition in services.items():
            build = definition.get("build") or builds.get(definition.get("image"))
            merged = definition | ({"build": build} if build else {})
            container = Container(name, self.compose_file, merged, self.stage(build or {}))
            own = self.variables.get(f"{name.upper().replace('-', '_')}_CPUS") or self.variables.get("CPUS")
            container.is_without_cpu_limit = number(own, 1) == 0
            containers.append(container)
        return containers

    def read_images(self) -> list[Container]:
        """A container for each image that can run, where no service is known."""
        stages = self.dockerfile.stages.items()
        return [Container(name, "Dockerfile", {}, stage) for name, stage in stages if stage.command]

    @property
    def profiles(self) -> str:
        """The profiles that are active."""
        return self.variables.get("COMPOSE_PROFILES", "")

    def stage(self, build: dict[str, Any]) -> Stage:
        """The stage that a service is built from, if the Dockerfile of this directory has it."""
        place = Path(build.get("context", "/"), build.get("dockerfile", "Dockerfile"))
        if place.resolve() != (self.directory / "Dockerfile").resolve():
            return Stage()
        return self.dockerfile.stage(build.get("target", ""))

    def read_command(self, container: Container) -> None:
        """Read the settings of the server that the container's command starts."""
        if container.definition.get("restart") == "no":
            return
        line = expand(" ".join(container.command), container.environment).split()
        programs = [Path(word).name.rpartition(".")[2] for word in line]
        module = next((after for word, after in pairwise(line) if word == "-m"), "")
        if "gunicorn" in programs:
            self.add_gunicorn(container, line[programs.index("gunicorn") + 1 :])
        elif self.reads_uvicorn_file(module):
            self.add_uvicorn(container, line)
        elif "uvicorn" in [Path(word).name for word in line]:
            self.add_uvicorn(container, line, launched=False)
        elif not line and "build" in container.definition and not container.stage.base:
            self.read_unknown_command(container)

    def read_unknown_command(self, container: Container) -> None:
        """Nothing says what it runs: read the servers' files that are there."""
        if container.is_proxy:
            return
        if (self.directory / "uvicorn.json").exists():
            self.add_uvicorn(container, [])
        if (self.directory / "gunicorn.conf.py").exists():
            self.add_gunicorn(container, [])

    def read_lone_files(self) -> None:
        """Read a server's file by itself where no container is known to use it."""
        for name, add in (("gunicorn.conf.py", self.add_gunicorn), ("uvicorn.json", self.add_uvicorn)):
            server = name.partition(".")[0]
            if not (self.directory / name).exists():
                self.not_checked.append(f"{name}: not here")
            elif all(getattr(container, server) is None for container in self.containers):
                self.containers.append(alone := Container(server, name))
                add(alone, [])

    def reads_uvicorn_file(self, module: str) -> bool:
        """Whether this module of the project starts Uvicorn with uvicorn.json."""
        path = self.directory / module.replace(".", "/")
        if module.startswith("serving.uvicorn"):
            # A project without the file has not taken over the service that needs it.
            return all((self.directory / name).exists() for name in ("serving/uvicorn", "uvicorn.json"))
        sources = [path.with_suffix(".py"), *path.glob("*.py")] if module else []
        readers = [source for source in sources if source.exists()]
        return any("uvicorn.json" in source.read_text(encoding="utf-8") for source in readers)

    def launch(self, container: Container, words: list[str]) -> Launch:
        """How this container starts its server."""
        known = bool(container.definition or container.stage.base)
        return Launch(
            directory=self.directory,
            command_place=container.command_place,
            environment_place=container.file,
            environment=container.environment if known else dict(os.environ),
            limits=measured_limits(container) if known else None,
            words=words,
        )

    def add_gunicorn(self, container: Container, words: list[str]) -> None:
        """Read Gunicorn's settings, and Uvicorn's where its workers run Uvicorn."""
        missing = not (self.directory / "gunicorn.conf.py").exists()
        if missing and any("gunicorn.conf.py" in copied for copied in self.dockerfile.copied):
            return
        try:
            container.gunicorn = read_gunicorn(self.launch(container, words))
        except Problem as problem:
            self.broken.append(str(problem))
        except Unreadable as reason:
            self.not_checked.append(f"{reason} to resolve it")
        else:
            worker = str(container.gunicorn["worker_class"])
            if self.reads_uvicorn_file(worker.rpartition(".")[0]):
                self.add_uvicorn(container, [])

    def add_uvicorn(self, container: Container, words: list[str], *, launched: bool = True) -> None:
        """Read Uvicorn's settings."""
        if not launched and (self.directory / "uvicorn.json").exists():
            place = f"{container.command_place}={' '.join(container.command)}"
            fix = "must read uvicorn.json, which uvicorn itself does not"
            self.broken.append(f"{place}: {fix}; change it to python -m serving.uvicorn")
        try:
            container.uvicorn = read_uvicorn(self.launch(container, words), launched=launched)
        except Problem as problem:
            self.broken.append(str(problem))

    def read_caddyfile(self) -> Caddyfile | None:
        """The edge's files, with the variables of its container."""
        name = next((name for name in CADDY_FILES if (self.directory / name).exists()), "")
        if not name:
            return None
        path = self.directory / name
        files = [path, *sorted(path.parent.glob("**/*.caddy"))]
        return Caddyfile.read(self.directory, files, self.edge.environment if self.edge else {})

    def read_supervisor(self) -> list[SupervisedProgram]:
        """The programs of supervisord.conf."""
        name = next((name for name in SUPERVISOR_FILES if (self.directory / name).exists()), "")
        reader = configparser.RawConfigParser(inline_comment_prefixes=(" ;",))
        try:
            reader.read(self.directory / name if name else [], encoding="utf-8")
        except configparser.Error as error:
            self.broken.append(f"{name}: must be what supervisord accepts: {error}")
        programs = []
        for section in reader.sections():
            kind, _, program = section.partition(":")
            if kind == "program":
                wait = reader.get(section, "stopwaitsecs", fallback="10")
                seconds = float(wait) if wait.strip().isdigit() else None
                programs.append(SupervisedProgram(program, name, seconds))
        return programs

    def environment_files(self) -> dict[str, str]:
        """The text of .env and of each .env.SERVICE that is here, by file name."""
        others = [self.directory / f".env.{container.name}" for container in self.containers]
        paths = [path for path in (self.env_file, *others) if path.is_file()]
        return {path.name: env_files.read_text(path) for path in paths}


def unescaped(text: str) -> str:
    """A value as the container gets it: `docker compose config` writes $ as $$."""
    return text.replace("$$", "$")


def measured_limits(container: Container) -> sizing.Limits:
    """The limits that the server would measure in this container."""
    limits = {name: number(value) for name, value in container.limits.items() if number(value)}
    changes: dict[str, Any] = {}
    if "cpus" in limits:
        changes |= {"cpus": limits["cpus"], "cpu_limited": True}
    known = {field.name for field in fields(sizing.Limits)}
    changes |= {name: int(limits[name]) for name in ("memory", "pids") if name in limits and name in known}
    return replace(sizing.limits(), **changes)
