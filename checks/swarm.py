"""What deploy/swarm/stack.yml must have in common with docker-compose.yml, and what Swarm needs in addition.

The two files are written by hand. Both are compared as Compose resolves them, with the same .env.
"""

from collections.abc import Iterator

from checks.caddyfile import duration
from checks.project import STACK_FILE, Container, Project

# Keys with the same value in both files.
SAME = (
    "image",
    "user",
    "command",
    "entrypoint",
    "read_only",
    "cap_drop",
    "cap_add",
    "init",
    "stop_grace_period",
    "ulimits",
    "logging",
    "healthcheck",
    "dns_search",
)
# Variables that only one of the two needs, or that have another value there.
DIFFERENT = {"COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME", "FORWARDED_ALLOW_IPS"}
DIFFERENT |= {"EDGE_DRAIN_SECONDS", "EDGE_METRICS", "EDGE_UPSTREAMS"}
SECRETS = "/run/secrets/"
# Seconds between the end of the graceful stop and the moment at which the engine kills the container.
STOP_MARGIN = 2


def findings(project: Project) -> Iterator[str]:
    """What must change in the stack."""
    stack = {it.name: it for it in project.stack}
    services = {it.name: it for it in project.containers if it.definition} if stack else {}
    for name, container in services.items():
        optional = container.definition.get("profiles")
        if container.is_built_here and name not in stack and not optional:
            fix = f"must be in this file, too, because {container.file} has it; add it"
            yield f"{STACK_FILE}: {name}=None: {fix}"
    for name, task in stack.items():
        yield from ports(task)
        yield from ignored(task)
        yield from unreadable_secrets(task)
        yield from edge_stop(project, task)
        if name in services:
            yield from differences(task, services[name])
        if name in services and services[name].is_long_running:
            yield from updates(task)
        elif name in services and services[name].is_built_here:
            yield from job(task)


def differences(task: Container, container: Container) -> Iterator[str]:
    """Where a service of the stack is not what it is in the Compose file."""
    pairs = {key: (task.definition.get(key), container.definition.get(key)) for key in SAME}
    pairs["networks"] = (names(task, "networks"), names(container, "networks"))
    for folder in task.temporary_folders | container.temporary_folders:
        pairs[folder] = (in_memory(task, folder), in_memory(container, folder))
    for limit, expected in container.limits.items():
        pairs[f"deploy.resources.limits.{limit}"] = (task.limits[limit], expected)
    own, other = (it.definition.get("environment") or {} for it in (task, container))
    for name in sorted((own.keys() | other.keys()) - DIFFERENT):
        if not str(own.get(name)).startswith(SECRETS):
            pairs[f"environment.{name}"] = (own.get(name), other.get(name))
    for key, (value, expected) in pairs.items():
        if value != expected:
            fix = f"must be {expected}, as in {container.file}; change one of them"
            yield f"{task.file}: {task.name}.{key}={value}: {fix}"


def names(container: Container, key: str) -> list[str]:
    """The names in a part of a definition, such as its networks."""
    return sorted(container.definition.get(key) or {})


def in_memory(container: Container, folder: str) -> str:
    """What a folder in memory is, with its size; "no tmpfs volume" where there is none."""
    size = container.temporary_folders.get(folder)
    return "no tmpfs volume" if size is None else f"tmpfs of {size / 1024**2:g}m"


def ports(task: Container) -> Iterator[str]:
    """Only the edge is reachable from other machines, and it sees the client's address."""
    for port in task.definition.get("ports", []):
        place = f"{task.file}: {task.name}.ports"
        if not task.is_proxy:
            fix = "must not be published: Swarm does so on every address of the node; remove it"
            yield f"{place}={port['target']}: {fix}"
        elif port.get("mode") != "host":
            fix = "must be host, or every client has the address of the node; change it to host"
            yield f"{place}.mode={port.get('mode')}: {fix}"


def ignored(task: Container) -> Iterator[str]:
    """No key that Swarm drops, some of them without a word."""
    for key in [key for key in ("tmpfs", "security_opt") if task.definition.get(key)]:
        fix = "must not be here, because Swarm ignores it (docs/fleet.md); remove it"
        yield f"{task.file}: {task.name}.{key}={task.definition[key]}: {fix}"


def updates(task: Container) -> Iterator[str]:
    """A new version must work before the old one is stopped, and names lead to containers."""
    deploy = task.definition.get("deploy", {})
    update = deploy.get("update_config") or {}
    if task.is_proxy:
        order = ("stop-first", "the old container has the ports until it stops")
    else:
        order = ("start-first", "the old replica serves until the new one is healthy")
    for key, value, (expected, because) in (
        ("endpoint_mode", deploy.get("endpoint_mode"), ("dnsrr", "the edge balances, and trusts addresses")),
        ("update_config.order", update.get("order"), order),
        ("update_config.failure_action", update.get("failure_action"), ("rollback", "others stop halfway")),
    ):
        if value != expected:
            fix = f"must be {expected}, because {because}; change it to that"
            yield f"{task.file}: {task.name}.deploy.{key}={value}: {fix}"


def edge_stop(project: Project, task: Container) -> Iterator[str]:
    """The edge drains and finishes its responses before the engine kills it."""
    if not task.is_proxy or not project.caddyfile:
        return
    stop = duration(str(task.definition.get("stop_grace_period", "10s"))) or 0
    drain = task.environment.get("EDGE_DRAIN_SECONDS", "0")
    for directive in project.caddyfile.named("grace_period"):
        needed = float(drain or 0) + (directive.seconds or 0) + STOP_MARGIN
        if stop <= needed:
            fix = f"must be longer than EDGE_DRAIN_SECONDS={drain} + {directive} + {STOP_MARGIN} s"
            yield f"{task.describe('stop_grace_period', '10s')}: {fix}; change it to {needed + 3:.0f}s"


def job(task: Container) -> Iterator[str]:
    """A container that runs once is a job."""
    mode = task.definition.get("deploy", {}).get("mode")
    if not str(mode).endswith("-job"):
        fix = "must be a job, because Swarm would start it again and again; change it to replicated-job"
        yield f"{task.file}: {task.name}.deploy.mode={mode}: {fix}"


def unreadable_secrets(task: Container) -> Iterator[str]:
    """Each file that a variable names is a secret that the image's user can read."""
    secrets = {it["target"].removeprefix(SECRETS): it for it in task.definition.get("secrets", [])}
    user = str(task.definition.get("user") or task.stage.instruction("USER")).partition(":")[0]
    for name, path in task.environment.items():
        if path.startswith(SECRETS) and path.removeprefix(SECRETS) not in secrets:
            place = f"{task.file}: {task.name}.environment.{name}={path}"
            yield f"{place}: must be one of its secrets; add it to {task.name}.secrets"
    for target, secret in secrets.items():
        private = not int(str(secret.get("mode", "0444")), 8) & 0o004
        if user and private and secret.get("uid") != user:
            place = f"{task.file}: {task.name}.secrets.{target}.uid={secret.get('uid')}"
            yield f"{place}: must be {user}, the user of the image; change it to that"
