"""What the project in a directory would run, from the files that are there; serving/doctor.py judges it.

The Compose file as Compose resolves it, the Dockerfile, Gunicorn's settings as Gunicorn arrives at
them, uvicorn.json. What can not be read is said, not guessed.
"""

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from serving import sizing
from serving.dockerfile import Dockerfile, command, expand

COMPOSE = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
EDGE = re.compile("caddy|edge|envoy|haproxy|httpd|nginx|proxy|traefik")


class Settings(dict[str, Any]):
    """A server's settings and where each comes from; None for what is set nowhere."""

    def __init__(self, default: str = "") -> None:
        self.default, self.origins = default, dict[str, str]()

    def __missing__(self, name: str) -> None:
        return None

    def add(self, origin: str, values: Mapping[str, Any]) -> None:
        """Let `values` overrule what is there."""
        self.update(values)
        self.origins |= dict.fromkeys(values, origin)

    def say(self, name: str) -> str:
        """`origin: name=value`."""
        return f"{self.origins.get(name, self.default)}: {name}={self[name]}"


@dataclass
class Process:
    """What would run: a service of Compose, else an image of the Dockerfile, else a server by itself."""

    name: str
    file: str
    project: "Project"
    service: dict[str, Any] = field(default_factory=dict)
    stage: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    gunicorn: Settings = field(default_factory=Settings)
    # Uvicorn's, as a server of its own or in Gunicorn's workers.
    uvicorn: Settings = field(default_factory=Settings)

    @property
    def at(self) -> str:
        """Where its command stands."""
        composed = self.service.get("command") or self.service.get("entrypoint")
        return f"{self.file}: {self.name}.command" if composed else "Dockerfile: CMD"

    @property
    def own(self) -> bool:
        """A service that this project makes, unlike a database's image."""
        return bool(self.service) and bool("build" in self.service or self.gunicorn or self.uvicorn)

    @property
    def stays(self) -> bool:
        """One of our own that is no one-shot."""
        return self.own and self.service.get("restart") != "no"

    @property
    def edge(self) -> bool:
        """A proxy, by its name or its image."""
        return bool(EDGE.search(f"{self.name} {self.service.get('image')} {self.stage.get('FROM')}"))

    @property
    def limits(self) -> dict[str, Any]:
        """Of the container, in either of Compose's spellings."""
        found = self.service.get("deploy", {}).get("resources", {}).get("limits", {})
        names = {"cpus": "cpus", "memory": "mem_limit", "pids": "pids_limit"}
        return {name: found.get(name) or self.service.get(old) for name, old in names.items()}

    def say(self, key: str, default: object = None) -> str:
        """`file: service.key=value`."""
        return f"{self.file}: {self.name}.{key}={self.service.get(key, default)}"


class Project:
    """The processes of a directory, what is broken, and what could not be looked at."""

    def __init__(self, directory: Path, *options: str) -> None:
        """`options` are Compose's own."""
        self.directory = directory
        self.unchecked: list[str] = []
        self.broken: list[str] = []
        file, services = self.compose(options)
        try:
            self.dockerfile = Dockerfile((directory / "Dockerfile").read_text(encoding="utf-8"))
        except OSError:
            self.unchecked.append("Dockerfile: not here")
            self.dockerfile = Dockerfile("")
        stages = self.dockerfile.stages
        # A service may run the image that another one builds.
        builds = {
            it["image"]: {"build": it["build"]} for it in services.values() if {"image", "build"} <= it.keys()
        }
        services = {name: builds.get(it.get("image"), {}) | it for name, it in services.items()}
        self.processes = [
            Process(name, file, self, service, self.stage(service.get("build") or {}))
            for name, service in services.items()
        ]
        if not services:
            self.processes = [Process(name, "Dockerfile", self, {}, stages[name]) for name in stages]
            self.processes = [p for p in self.processes if "CMD" in p.stage or "ENTRYPOINT" in p.stage]
        for process in self.processes:
            # What a service adds to its image is not known while the Compose file is not.
            self.resolve(process, bool(services) or not file)
        # A server's file that nothing here is known to read is looked at by itself.
        for name, look in (("gunicorn.conf.py", self.gunicorn), ("uvicorn.json", self.uvicorn)):
            if not (directory / name).exists():
                self.unchecked.append(f"{name}: not here")
            elif not any(getattr(process, look.__name__) for process in self.processes):
                self.processes.append(alone := Process(look.__name__, name, self, environ=dict(os.environ)))
                look(alone, [])

    def compose(self, options: tuple[str, ...]) -> tuple[str, dict[str, dict[str, Any]]]:
        """The Compose file's name and its services."""
        name = next((name for name in COMPOSE if (self.directory / name).exists()), "")
        if not name:
            self.unchecked.append("docker-compose.yml: not here")
        elif not has_compose():
            self.unchecked.append(f"{name}: no Docker Compose here to resolve it")
        else:
            words = ["docker", "compose", "--profile", "*", *options, "config", "--format", "json"]
            found = subprocess.run(words, cwd=self.directory, capture_output=True, text=True)  # noqa: S603  no shell
            if not found.returncode:
                return name, json.loads(found.stdout)["services"]
            self.broken.append(f"{name}: must be what Compose accepts: {found.stderr.strip()}")
        return name, {}

    def stage(self, build: dict[str, Any]) -> dict[str, Any]:
        """The stage that a service is built from, if our Dockerfile has it."""
        place = Path(build.get("context", "/"), build.get("dockerfile", "Dockerfile"))
        ours = place.resolve() == (self.directory / "Dockerfile").resolve()
        stages = self.dockerfile.stages if ours else {}
        return stages.get(build.get("target") or next(reversed(stages), ""), {})

    def resolve(self, p: Process, serves: bool) -> None:
        """Its environment, its command and its server's settings."""
        p.environ = dict(p.stage.get("ENV", {}))
        p.environ |= {name: str(value or "") for name, value in p.service.get("environment", {}).items()}
        for key, instruction in (("entrypoint", "ENTRYPOINT"), ("command", "CMD")):
            p.command += p.service.get(key) or command(p.stage.get(instruction, ""))
        if p.service.get("restart") == "no" or not serves:
            return
        line = expand(" ".join(p.command), p.environ).split()
        programs = [Path(word).name.rpartition(".")[2] for word in line]
        module = next((after for word, after in pairwise(line) if word == "-m"), "")
        if "gunicorn" in programs:
            self.gunicorn(p, line[programs.index("gunicorn") + 1 :])
        elif "uvicorn" in programs:
            self.uvicorn(p, line, launched=False)
        elif self.launches(module):
            self.uvicorn(p, line)
        elif not line and "build" in p.service and not p.stage and not p.edge:
            # Nothing says what it runs: then what the files are there for.
            for name, look in (("uvicorn.json", self.uvicorn), ("gunicorn.conf.py", self.gunicorn)):
                if (self.directory / name).exists():
                    look(p, [])

    def launches(self, module: str) -> bool:
        """Whether this module of the project reads uvicorn.json."""
        path = self.directory / module.replace(".", "/")
        sources = [path.with_suffix(".py"), *path.glob("*.py")] if module else []
        return any("uvicorn.json" in source.read_text() for source in sources if source.exists())

    def gunicorn(self, p: Process, line: list[str]) -> None:
        """Default < variable < file < GUNICORN_CMD_ARGS < command line, as Gunicorn has it."""
        try:
            config = importlib.import_module("gunicorn.config").Config()
        except ImportError:
            self.unchecked.append("gunicorn.conf.py: Gunicorn is not installed here to resolve it")
            return
        words = p.environ.get("GUNICORN_CMD_ARGS", "").split() + line
        try:
            with contextlib.redirect_stderr(errors := io.StringIO()):
                given = vars(config.parser().parse_known_args(words)[0])
        except SystemExit:
            self.broken.append(f"{p.at}={' '.join(p.command)}: {errors.getvalue().splitlines()[-1]}")
            return
        found = Settings("Gunicorn's default")
        # Gunicorn has read these two variables of this shell, which are not the container's.
        default = {"workers": 1, "forwarded_allow_ips": "127.0.0.1,::1"}
        found.update({name: option.get() for name, option in config.settings.items()} | default)
        if p.environ.get("WEB_CONCURRENCY"):
            found.add(f"{p.file}: WEB_CONCURRENCY", {"workers": p.environ["WEB_CONCURRENCY"]})
        path = self.directory / str(given["config"] or "gunicorn.conf.py").removeprefix("file:")
        path = path if path.exists() else self.directory / path.name
        if path.exists():
            try:
                with inside(p, self.directory):
                    values = runpy.run_path(str(path))
            except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a configuration raises
                self.broken.append(f"{path.name}: must be what Gunicorn can run: {error}")
                return
            found.add(path.name, {name: values[name] for name in values if name in found})
        elif any(path.name in copied for copied in self.dockerfile.copied):
            return
        found.add(p.at, {name: value for name, value in given.items() if value is not None and name in found})
        p.gunicorn = found
        kind = found["worker_class"]
        worker = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        found["worker_class"] = "gthread" if worker == "sync" and found["threads"] > 1 else worker
        if self.launches(worker.rpartition(".")[0]):
            self.uvicorn(p, [])

    def uvicorn(self, p: Process, line: list[str], launched: bool = True) -> None:
        """Default < uvicorn.json where a launcher reads it < variable < command line."""
        p.uvicorn = Settings("Uvicorn's default")
        p.uvicorn.update({"timeout_keep_alive": 5, "timeout_worker_healthcheck": 5})
        try:
            values = json.loads((self.directory / "uvicorn.json").read_text(encoding="utf-8"))
            if launched:
                p.uvicorn.add("uvicorn.json", values)
            else:
                must = "must read uvicorn.json, which uvicorn itself does not; change it to the launcher"
                self.broken.append(f"{p.at}={' '.join(p.command)}: {must}")
        except FileNotFoundError:
            pass
        except (TypeError, ValueError) as error:
            self.broken.append(f"uvicorn.json: must be one JSON object: {error}")
            p.uvicorn.clear()
            return
        if p.environ.get("WEB_CONCURRENCY"):
            p.uvicorn.add(f"{p.file}: WEB_CONCURRENCY", {"workers": p.environ["WEB_CONCURRENCY"]})
        variables = {name[8:].lower(): p.environ[name] for name in p.environ if name.startswith("UVICORN_")}
        p.uvicorn.add(p.file, {name: value for name, value in variables.items() if value})
        for word, after in pairwise([*line, "-"]):
            if word.startswith("--"):
                name, given, value = word[2:].partition("=")
                value = value if given else "" if after.startswith("-") else after
                p.uvicorn.add(p.at, {name.replace("-", "_"): value or True})


@cache
def has_compose() -> bool:
    """Whether a Docker client with Compose is here; an engine is not needed."""
    try:
        return not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode  # noqa: S607  from PATH
    except OSError:
        return False


@contextlib.contextmanager
def inside(p: Process, directory: Path) -> Iterator[None]:
    """This Python, as if in the container: its variables, its limits, the project's modules."""
    environ, measure, path, mine = dict(os.environ), sizing.limits, list(sys.path), sizing.limits()
    cpus, memory = float(p.limits["cpus"] or 0), int(p.limits["memory"] or 0)
    own = sizing.Limits(cpus or mine.cpus, memory or mine.memory, bool(cpus) or mine.cpu_limited)
    try:
        if p.service or p.stage:
            os.environ.clear()
            os.environ.update({name: environ.get(name, "") for name in ("PATH", "HOME")} | p.environ)
            sizing.limits = lambda root=Path("/"): own
        sys.path.insert(0, str(directory))
        yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        sizing.limits, sys.path[:] = measure, path
