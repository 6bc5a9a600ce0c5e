"""`python3 -m checks.variables`: refuse a value in .env with which the deployment could not work.

`make up`, `make dev`, `make deploy` and `make doctor` call this before anything starts. Each wrong
variable gets one line: where it is set, its value, what is allowed, and what to change it to. The values
are those that Compose finds or, without Compose, those of process mode. Python 3.9 is enough.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from checks import profiles
from serving import settings

# Checks the variable of this name in the environment; raises SettingError for a wrong value.
Check = Callable[[str], object]

LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
HOST_NAME = re.compile(rf"(?=.{{1,240}}$){LABEL}(\.{LABEL})*")


def is_host_name(value: str) -> bool:
    """Whether this is a name of DNS; an address is not."""
    return bool(HOST_NAME.fullmatch(value)) and not value.rpartition(".")[2].isdigit()


def is_address(value: str) -> bool:
    """Whether this is an IPv4 or IPv6 address."""
    try:
        return bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def is_network(value: str) -> bool:
    """Whether this is a network as Caddy reads it, or a single address."""
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return bool(re.fullmatch(r"[0-9A-Fa-f.:]+(/[0-9]+)?", value))


def is_listening_address(value: str) -> bool:
    """Whether Compose can publish ports on this address: IPv6 is in brackets."""
    bracketed = value.startswith("[") and value.endswith("]")
    return is_address(value.strip("[]")) and (":" in value) == bracketed


def is_edge_port(value: str) -> bool:
    """Whether the edge can listen on this port, and has no other use for it."""
    in_range = re.fullmatch("[0-9]{1,5}", value) and 1 <= int(value) <= 65535
    return bool(in_range) and value not in ("8001", "8002", "8003", "9000")


def is_transfer_time(value: str) -> bool:
    """Whether Caddy reads this as a duration from one second to a year."""
    if not re.fullmatch(r"([0-9]{1,8}[dhms])+", value):
        return False
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    seconds = sum(int(count) * units[unit] for count, unit in re.findall(r"([0-9]+)(.)", value))
    return 1 <= seconds <= 365 * 86400


def is_cpus(value: str) -> bool:
    """Whether this is a number of CPUs that the engine accepts, or 0."""
    number = re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", value)
    return bool(number) and (float(value) == 0 or float(value) >= 0.01)


def is_memory(value: str) -> bool:
    """Whether this is a size as Compose reads it, and enough for one process of Python."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)([kmg]?)i?b?", value.lower())
    if not found:
        return False
    unit: int = 1024 ** " kmg".index(found[2] or " ")
    return float(found[1]) * unit >= 64 * 1024**2


def must_be(allowed: str, fits: Callable[[str], object]) -> Check:
    """The check that a variable, if it has a value, fits."""

    def check(name: str) -> None:
        value = settings.text(name)
        if value and not fits(value):
            settings.refuse(name, value, allowed)

    return check


def whole_number(minimum: int, maximum: int) -> Check:
    """The check for a whole number between these two."""
    return lambda name: settings.integer(name, None, minimum=minimum, maximum=maximum)


def matching(allowed: str, pattern: str) -> Check:
    """The check that the whole value matches a regular expression."""
    return must_be(allowed, re.compile(pattern, re.ASCII).fullmatch)


def each(allowed: str, *fits: Callable[[str], object]) -> Check:
    """The check that each of the words that blanks separate fits at least one of these."""
    return must_be(allowed, lambda value: all(any(fit(word) for fit in fits) for word in value.split()))


# What several variables may be.
host_names = each(
    "host names such as example.com, separated by blanks, without https://, port or path",
    is_host_name,
    is_address,
)
port = whole_number(1, 65535)
edge_port = must_be(
    "a whole number from 1 to 65535, and none of 8001, 8002, 8003, 9000, which the edge uses itself",
    is_edge_port,
)
cpus = must_be("a number of CPUs such as 0.5 or 2, or 0 for no limit", is_cpus)
memory = must_be("a size of at least 64m, such as 512m or 2g", is_memory)
files = whole_number(256, 1_048_576)
tag = matching("an image tag: ASCII letters, digits, '_', '.' and '-', at most 128", r"\w[\w.-]{0,127}")
image = matching(
    "the name of an image, such as registry.example.com/name:1.0",
    r"[a-z0-9][\w./-]*(:[0-9]+/[\w./-]+)?(:[\w.-]+)?(@sha256:[0-9a-f]{64})?",
)
# What one variable may be.
domain = must_be("a domain such as example.com, without https://, port or path", is_host_name)
address = must_be("an address of this machine, IPv6 in brackets, or empty for all", is_listening_address)
proxies = each(
    "addresses or networks such as 10.0.0.0/8, separated by blanks", "private_ranges".__eq__, is_network
)
transfer_time = must_be("a time from 1s to 365d in s, m, h or d, such as 30m or 24h", is_transfer_time)
on_or_off = matching("on or off", "on|off")
metrics_port = must_be(
    "a whole number from 1 to 65535, but not 8000, on which the servers listen",
    lambda value: value.isascii() and value.isdigit() and 1 <= int(value) <= 65535 and value != "8000",
)
tmp_size = matching("a whole number with k, m or g, such as 128m", "0*[1-9][0-9]{0,9}[kmgKMG]")
registry = matching("a registry with a slash at its end", r"[A-Za-z0-9.-]+(:[0-9]+)?/([a-z0-9._-]+/)*")
url = matching("an address that begins with https:// or http://", r"https?://\S+")
path = matching("the path of a file", r"[^\n,]*")
profile_names = matching(
    "names of profiles, separated by commas without blanks", r"\*|[a-zA-Z0-9][\w.-]*(,[a-zA-Z0-9][\w.-]*)*"
)
# A part of a DNS name has at most 63 characters; the edge looks up PROJECT-SERVICE-8.
project_name = matching("at most 50 characters, because names of containers are DNS names", "(?s:.{,50})")
compatibility = matching(
    "off, because it changes the names by which the edge finds the containers", "(?i:0|false|no|off)"
)

# Each variable, its check, and a value that passes it.
VARIABLES: dict[str, tuple[Check, str]] = {
    "DOMAIN": (domain, "localhost"),
    "DJANGO_HOST": (host_names, "example.com"),
    "FLASK_HOST": (host_names, "example.com"),
    "FASTAPI_HOST": (host_names, "example.com"),
    "EDGE_ADDRESS": (address, "127.0.0.1"),
    "EDGE_HTTP_PORT": (edge_port, "8080"),
    "EDGE_HTTPS_PORT": (edge_port, "8443"),
    "EDGE_TRUSTED_PROXIES": (proxies, "the address of the proxy"),
    "DJANGO_PORT": (port, "8001"),
    "FLASK_PORT": (port, "8002"),
    "FASTAPI_PORT": (port, "8003"),
    "GRAFANA_PORT": (port, "3000"),
    "ALERT_WEBHOOK_URL": (url, "https://alerts.example.com/hook"),
    # The servers' own bounds.
    "REQUEST_TIMEOUT": (lambda _: settings.request_timeout(), "20"),
    "MAX_BODY": (lambda name: settings.size(name, 0), "1MiB"),
    "DRAIN_SECONDS": (lambda _: settings.drain_seconds(), "2"),
    "EDGE_TRANSFER_TIMEOUT": (transfer_time, "24h"),
    "EDGE_ACCESS_LOG": (on_or_off, "on"),
    "LOG_FORMAT": (lambda name: settings.choice(name, ("plain", "json"), "plain"), "plain"),
    "METRICS": (lambda name: settings.flag(name), "off"),
    "METRICS_PORT": (metrics_port, "9000"),
    "CPUS": (cpus, "1.0"),
    "MEMORY": (memory, "512m"),
    "TMP_SIZE": (tmp_size, "128m"),
    "PIDS": (whole_number(64, 4_194_304), "1024"),
    "NOFILE": (files, "16384"),
    "EDGE_NOFILE": (files, "6144"),
    "EDGE_CPUS": (cpus, "1.0"),
    "EDGE_MEMORY": (memory, "512m"),
    "DJANGO_CPUS": (cpus, "1.0"),
    "DJANGO_MEMORY": (memory, "512m"),
    "FLASK_CPUS": (cpus, "1.0"),
    "FLASK_MEMORY": (memory, "512m"),
    "FASTAPI_CPUS": (cpus, "1.0"),
    "FASTAPI_MEMORY": (memory, "512m"),
    "POSTGRES_CPUS": (cpus, "1.0"),
    "POSTGRES_MEMORY": (memory, "512m"),
    "POSTGRES_MAX_CONNECTIONS": (whole_number(25, 10_000), "100"),
    "REGISTRY": (registry, "registry.example.com/team/"),
    "VERSION": (tag, "1.0"),
    "PREVIOUS_VERSION": (tag, "1.0"),
    "EDGE_VERSION": (tag, "1.0"),
    "FASTAPI_TARGET": (matching("fastapi or fastapi-hybrid", "fastapi(-hybrid)?"), "fastapi"),
    "PYTHON_IMAGE": (image, "python:3.14-slim"),
    "EDGE_IMAGE": (image, "caddy:2.11"),
    "POSTGRES_IMAGE": (image, "postgres:18"),
    "PROMETHEUS_IMAGE": (image, "prom/prometheus:v3.5.3"),
    "ALERTMANAGER_IMAGE": (image, "prom/alertmanager:v0.33.1"),
    "GRAFANA_IMAGE": (image, "grafana/grafana:13.2.3"),
    "PIP_INDEX_URL": (url, "https://pypi.example.com/simple"),
    "BUILD_CA": (path, "corporate-ca.pem"),
    "BACKUP_DIR": (matching("the path of a directory, without ~", r"[^~\n][^\n]*"), "backups"),
    "BACKUP_KEEP": (whole_number(1, 10_000), "7"),
    "COMPOSE_PROFILES": (profile_names, "one of those in docker-compose.yml"),
    "COMPOSE_PROJECT_NAME": (project_name, "a shorter name"),
    "COMPOSE_COMPATIBILITY": (compatibility, "false"),
}


@cache
def has_compose() -> bool:
    """Whether a Docker client with Compose is here; an engine is not needed."""
    try:
        return not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    except OSError:
        return False


def read(directory: Path, *options: str) -> dict[str, str]:
    """The value of each variable, "" for none, as Compose finds it for the project in this directory.

    `options` are those of Compose, such as `--env-file FILE`. Raises SettingError with the message of
    Compose if it cannot read the .env file.
    """
    references = {name: f"${{{name}-}}" for name in VARIABLES}
    project = {"services": {"values": {"image": "scratch", "environment": references}}}
    command = ["docker", "compose", *options, "--file", "-", "--project-directory", "."]
    found = subprocess.run(
        [*command, "config", "--format", "json"],
        cwd=directory,
        input=json.dumps(project),
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise settings.SettingError(found.stderr.strip())
    values = json.loads(found.stdout)["services"]["values"]["environment"]
    return {name: value.replace("$$", "$") for name, value in values.items()}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Let the servers' own functions find these values."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def problems(values: Mapping[str, str], file: str = ".env") -> list[str]:
    """What must change, one line for each wrong variable; `file` is where those are that no shell sets."""
    places = {
        name: "environment" if os.environ.get(name) == value else file for name, value in values.items()
    }
    found = []
    with environment({name: value for name, value in values.items() if name in VARIABLES}):
        for name, (check, example) in VARIABLES.items():
            value = values.get(name, "")
            try:
                if value != value.strip():
                    settings.refuse(name, value, "without blanks at its beginning and its end")
                check(name)
            except settings.SettingError as error:
                found.append(f"{places[name]}: {error}; change it to {example}")
    return found or [f"{places.get(name, file)}: {line}" for name, line in repeated(values)]


def repeated(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The ports and the host names that two variables have: the second variable, and what must change."""
    owners: dict[str, str] = {}
    for name in [name for name in VARIABLES if name.endswith(("_PORT", "_HOST"))]:
        # A service may have been deleted, the edge has its ports.
        default = VARIABLES[name][1] if name.startswith("EDGE_") else ""
        value = values.get(name) or default
        for word in value.lower().split():
            owner = owners.setdefault(word, name)
            if owner != name:
                fix = f"must not contain {word}, which {owner} has"
                yield name, f"{name}={value!r}: {fix}; change one of them"


def main() -> None:
    """The command line."""
    if has_compose():
        values = read(Path())
        found = problems(values)
        active = values["COMPOSE_PROFILES"]
        place = "environment" if active and os.environ.get("COMPOSE_PROFILES") == active else ".env"
        found = found or list(profiles.problems(profiles.read(Path()), active, place))
    else:
        from deploy.process.environment import deployment

        found = problems(deployment(Path()))
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
