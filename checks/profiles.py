"""Whether COMPOSE_PROFILES names profiles of the Compose file, and starts what the services need.

Compose ignores a profile that does not exist, and starts a service without the one that its address
names. checks/variables.py asks before anything starts, and checks/doctor.py as one of its rules.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Services = Mapping[str, Mapping[str, Any]]


def is_active(service: Mapping[str, Any], profiles: str) -> bool:
    """Whether Compose starts the service with this COMPOSE_PROFILES."""
    own = service.get("profiles") or []
    return not own or bool({*own, "*"} & set(profiles.split(",")))


def names_host(value: object, host: str) -> bool:
    """Whether the value is an address of this host."""
    pattern = rf"://([^/@\s]*@)?([^/,\s]*,)?{re.escape(host)}([:/?,]|$)"
    return re.search(pattern, str(value)) is not None


def problems(services: Services, profiles: str, file: str = ".env") -> Iterator[str]:
    """What must change, one line each; `file` is where COMPOSE_PROFILES is set."""
    known = sorted({name for service in services.values() for name in service.get("profiles") or []})
    place = f"{file}: COMPOSE_PROFILES={profiles!r}"
    for name in filter(None, profiles.split(",")):
        if name not in (*known, "*"):
            allowed = f"of {', '.join(known)}" if known else "empty, because no service has a profile"
            yield f"{place}: {name} must be one {allowed}; change it"
    for name, service in services.items():
        if not is_active(service, profiles):
            continue
        for variable, value in (service.get("environment") or {}).items():
            for host, other in services.items():
                if not is_active(other, profiles) and names_host(value, host):
                    fix = f"must contain {other['profiles'][0]}, because {name}'s {variable} names {host}"
                    yield f"{place}: {fix}; change one of them"
        yield from postgres_contradictions(name, service.get("environment") or {}, place)


def postgres_contradictions(name: str, environment: Mapping[str, Any], place: str) -> Iterator[str]:
    """A database of its own, where the profile brings one."""
    if {"postgres", "*"} & set(str(environment.get("COMPOSE_PROFILES") or "").split(",")):
        for variable in [it for it in ("DATABASE_URL", "DATABASE_URL_FILE") if environment.get(it)]:
            yield f"{place}: must be without postgres while {name} has {variable}; change one of them"


def read(directory: Path, *options: str) -> Services:
    """The services of the Compose file, those of every profile included; {} if Compose cannot read it."""
    command = ["docker", "compose", "--profile", "*", *options, "config", "--format", "json"]
    found = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    services: Services = json.loads(found.stdout)["services"] if not found.returncode else {}
    return services
