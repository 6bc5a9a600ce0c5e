"""The settings that Gunicorn and Uvicorn would run with in a container, and where each comes from."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from serving import sizing

SCRIPT = Path(__file__).with_name("gunicorn_settings.py")

# Uvicorn's defaults for the options that a rule reads, where Uvicorn is not installed.
UVICORN_DEFAULTS = {
    "forwarded_allow_ips": None,
    "reload": False,
    "timeout_graceful_shutdown": None,
    "timeout_keep_alive": 5,
    "timeout_worker_healthcheck": 5,
    "workers": None,
}


class Problem(Exception):  # noqa: N818  it becomes a finding
    """A configuration that the server would refuse; the message is a finding."""


class Unreadable(Exception):  # noqa: N818  it becomes a line "not checked"
    """Why a configuration cannot be read here."""


@dataclass(frozen=True)
class Value:
    """A number and `place: name=value`, as a finding shows it."""

    number: float
    text: str

    def __str__(self) -> str:
        return self.text


class Settings(dict[str, Any]):
    """The settings of one server, and where each comes from."""

    def __init__(self, server: str, defaults: Mapping[str, Any]) -> None:
        super().__init__(defaults)
        self.server = server
        self.places: dict[str, str] = {}
        # The configuration file, and the names in it that are neither settings nor used in it.
        self.file = ""
        self.unknown: list[str] = []

    def __missing__(self, name: str) -> None:
        # A rule that asks for a misspelled name would otherwise never find anything.
        raise KeyError(f"{self.server} has no setting {name!r}")

    def add(self, place: str, values: Mapping[str, Any]) -> None:
        """Let `values` overrule the present ones."""
        self.update(values)
        self.places |= dict.fromkeys(values, place)

    def describe(self, name: str) -> str:
        """`place: name=value`."""
        return f"{self.places.get(name, f"{self.server}'s default")}: {name}={self[name]}"

    def value(self, name: str, default: float = 0) -> Value:
        """The setting as a number, and its description."""
        return Value(number(self[name], default), self.describe(name))


def number(value: object, default: float = 0) -> float:
    """The value as a number, or `default`; the server itself refuses a wrong one."""
    try:
        return float(str(value))
    except ValueError:
        return default


@dataclass(frozen=True)
class Launch:
    """How a container starts its server: where, with which environment, limits and command line."""

    directory: Path
    # The places that findings name: of the command line, and of the environment.
    command_place: str
    environment_place: str
    environment: Mapping[str, str]
    # None: those of this machine.
    limits: sizing.Limits | None
    words: list[str]


def read_gunicorn(launch: Launch) -> Settings:
    """Default < variable < file < GUNICORN_CMD_ARGS < command line, as Gunicorn has it."""
    request = {"words": launch.words, "limits": asdict(launch.limits) if launch.limits else None}
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    # -P: the project's modules are found, and those beside the script are not.
    command = [sys.executable, "-P", *(["-S"] if sys.flags.no_site else []), str(SCRIPT), json.dumps(request)]
    done = subprocess.run(
        command,
        cwd=launch.directory,
        env={**launch.environment, **inherited, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Problem(f"gunicorn.conf.py: must be what Gunicorn can run: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if "missing" in found:
        raise Unreadable(f"gunicorn.conf.py: {found['missing']}")
    if "command_error" in found:
        raise Problem(f"{launch.command_place}={' '.join(launch.words)}: {found['command_error']}")
    if "file_error" in found:
        raise Problem(f"{found['file']}: must be what Gunicorn can run: {found['file_error']}")
    settings = Settings("Gunicorn", found["values"])
    settings.file, settings.unknown = found["file"], found["unknown"]
    places = {
        "WEB_CONCURRENCY": f"{launch.environment_place}: WEB_CONCURRENCY",
        "file": found["file"],
        "command": launch.command_place,
    }
    settings.places = {name: places[source] for name, source in found["sources"].items() if source in places}
    if settings["worker_class"] in ("sync", "gunicorn.workers.sync.SyncWorker"):
        settings["worker_class"] = "gthread" if number(settings["threads"]) > 1 else "sync"
    return settings


def read_uvicorn(launch: Launch, *, launched: bool) -> Settings:
    """Default < uvicorn.json < variable < command line; `launched`: by a launcher that reads the file."""
    settings = Settings("Uvicorn", uvicorn_defaults())
    if launched:
        read_uvicorn_file(settings, launch)
    environment, place = launch.environment, launch.environment_place
    if environment.get("WEB_CONCURRENCY"):
        settings.add(f"{place}: WEB_CONCURRENCY", {"workers": environment["WEB_CONCURRENCY"]})
    variables = {name[8:].lower(): environment[name] for name in environment if name.startswith("UVICORN_")}
    settings.add(place, {name: value for name, value in variables.items() if value})
    settings.add(launch.command_place, options(launch.words))
    return settings


def read_uvicorn_file(settings: Settings, launch: Launch) -> None:
    """Add what the launcher takes from uvicorn.json, from REQUEST_TIMEOUT and from the limits."""
    try:
        values = json.loads((launch.directory / "uvicorn.json").read_text(encoding="utf-8"))
        settings.add("uvicorn.json", values)
    except FileNotFoundError:
        pass
    except (TypeError, ValueError) as error:
        raise Problem(f"uvicorn.json: must be one JSON object: {error}") from error
    if timeout := launch.environment.get("REQUEST_TIMEOUT"):
        settings.add(f"{launch.environment_place}: REQUEST_TIMEOUT", {"timeout_graceful_shutdown": timeout})
    if settings["workers"] is None and launch.limits:
        memory = worker_memory(launch.environment)
        settings.add("serving/sizing.py", {"workers": sizing.plan("asyncio", launch.limits, memory).workers})


def worker_memory(environment: Mapping[str, str]) -> int:
    """Bytes that one worker needs, by WORKER_MEMORY_MB."""
    return int(number(environment.get("WORKER_MEMORY_MB") or 128, 128)) * sizing.MEBIBYTE


def uvicorn_defaults() -> dict[str, Any]:
    """Uvicorn's options with their defaults, or those that a rule reads where Uvicorn is not installed."""
    return dict.fromkeys(uvicorn_options()) | UVICORN_DEFAULTS


def uvicorn_options() -> list[str]:
    """The names of Uvicorn's options; [] where it is not installed."""
    try:
        return [str(option.name) for option in importlib.import_module("uvicorn").main.params]
    except ImportError:
        return []


def options(words: list[str]) -> dict[str, Any]:
    """The options of a command line, by their names with underscores; an option without value is True."""
    found: dict[str, Any] = {}
    for word, after in pairwise([*words, "-"]):
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            if not has_value and not after.startswith("-"):
                value = after
            found[name.replace("-", "_")] = value or True
    return found
