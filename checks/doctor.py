"""`python -m checks.doctor [DIRECTORY]`: whether the files of a project agree with each other.

Deployments break between files. checks/project.py reads the files that are there; each rule below yields
`file: setting=value: must be ...; change ...`. The exit code is 1 when a rule finds something.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from checks import env_files, kubernetes, profiles, swarm, variables
from checks.caddyfile import Directive, size
from checks.project import Container, Project
from checks.servers import number, uvicorn_options, worker_memory
from serving import sizing

# Seconds that nginx keeps an idle connection to a server, where the project has no Caddyfile.
PROXY_IDLE = 60
# Caddy's own default, where its Caddyfile does not say it.
CADDY_IDLE = 120
# Seconds between the end of the graceful stop and the moment at which the engine kills the container.
STOP_MARGIN = 2
# Seconds that a container takes to become ready; the edge must hold requests that long.
START_SECONDS = 30
# Bytes that Go's HTTP server accepts beyond max_header_size.
HEADER_SLACK = 4096
# Uploads that must fit into /tmp at the same time.
UPLOADS = 4
# Connections that are not an application's: migrations, backups, psql, and three for superusers.
RESERVED_CONNECTIONS = 10
# PostgreSQL's default.
MAX_CONNECTIONS = 100
# Threads of a process that serve no request, and processes of a container that are no worker.
OTHER_THREADS, OTHER_PROCESSES = 4, 10
# Processes of PostgreSQL that are no connection: its writers, vacuum and parallel workers.
DATABASE_PROCESSES = 30

ASYNCIO = re.compile("asgi|asyncio|uvicorn|aiohttp", re.IGNORECASE)
ON = ("1", "true", "yes", "on")
# Variables of an earlier version that no file reads any more, and what replaces them.
REPLACED = {
    "FASTAPI_HYBRID_PORT": "FASTAPI_TARGET=fastapi-hybrid with FASTAPI_PORT",
    "DRAIN_FILE": "DRAIN_SECONDS, as SIGTERM alone starts the drain",
}

ContainerRule = Callable[[Container], Iterator[str]]
ProjectRule = Callable[[Project], Iterator[str]]
CONTAINER_RULES: list[ContainerRule] = []
PROJECT_RULES: list[ProjectRule] = []


def container_rule(function: ContainerRule) -> ContainerRule:
    """Apply this rule to every container."""
    CONTAINER_RULES.append(function)
    return function


def project_rule(function: ProjectRule) -> ProjectRule:
    """Apply this rule once."""
    PROJECT_RULES.append(function)
    return function


# Stopping and starting


@container_rule
def stop_grace_period(container: Container) -> Iterator[str]:
    """The server drains and finishes its requests before the engine kills it."""
    graceful = container.graceful_timeout
    if not container.is_long_running or graceful is None:
        return
    needed = container.drain_seconds + graceful.number + STOP_MARGIN
    if seconds(container.definition.get("stop_grace_period", "10s")) <= needed:
        drain = f"DRAIN_SECONDS={container.drain_seconds:g} + " if container.drain_seconds else ""
        fix = f"must be longer than {drain}{graceful} + {STOP_MARGIN} s; change it to {needed + 3:.0f}s"
        yield f"{container.describe('stop_grace_period', '10s')}: {fix}"


@container_rule
def graceful_end(container: Container) -> Iterator[str]:
    """Without a limit Uvicorn waits forever; inside Gunicorn's worker it must wait less than Gunicorn."""
    name = "timeout_graceful_shutdown"
    if container.uvicorn is None:
        return
    if container.uvicorn[name] is None:
        fix = "must be set, because one slow client delays every stop; change it to 20"
        yield f"{container.uvicorn.describe(name)}: {fix}"
    elif container.gunicorn is not None:
        inner, outer = container.uvicorn.value(name), container.gunicorn.value("graceful_timeout")
        if inner.number >= outer.number:
            yield f"{inner}: must be shorter than {outer}; change it to {outer.number - 5:g}"


@project_rule
def supervised_stop(project: Project) -> Iterator[str]:
    """Supervisord waits for the graceful stop before it kills a server."""
    graceful = {container.name: container.graceful_timeout for container in project.containers}
    for program in project.programs:
        value = graceful.get(program.name)
        if value and program.stop_seconds is not None and program.stop_seconds <= value.number:
            fix = f"must be longer than {value}; change it to {value.number + 5:g}"
            yield f"{program.file}: {program.name}.stopwaitsecs={program.stop_seconds:g}: {fix}"


@container_rule
def health_check(container: Container) -> Iterator[str]:
    """A hanging container is noticed, and a starting one gets enough time."""
    check = container.definition.get("healthcheck", {})
    if not container.is_long_running:
        return
    if not check.get("test") or check.get("disable"):
        if not container.stage.instruction("HEALTHCHECK"):
            fix = "must be set; change it to a test such as [CMD, python, -IS, serving/probe.py]"
            yield f"{container.describe('healthcheck')}: {fix}"
        return
    place = f"{container.file}: {container.name}.healthcheck"
    timeout, interval = seconds(check.get("timeout", "30s")), seconds(check.get("interval", "30s"))
    if timeout >= interval and {"timeout", "interval"} & check.keys():
        fix = f"must be shorter than its interval={interval:g}s; change one of them"
        yield f"{place}.timeout={timeout:g}s: {fix}"
    start = seconds(check.get("start_period", "0s"))
    if start + interval * int(check.get("retries", 3)) < container.boot_seconds:
        fix = "must, together with interval x retries, be at least the time in which a worker may start"
        yield f"{place}.start_period={start:g}s: {fix} ({container.boot_seconds:g} s); change it to 60s"


@project_rule
def probe_timeout(project: Project) -> Iterator[str]:
    """The probe reports its own timeout before the engine ends it."""
    for container in project.containers:
        check = container.definition.get("healthcheck", {})
        words, timeout = " ".join(check.get("test") or []), seconds(check.get("timeout", "30s"))
        for file, module in (("serving/probe.py", "serving.probe"), ("serving/health.py", "serving.health")):
            source = env_files.read_text(project.directory / file) if file in words or module in words else ""
            found = re.search(r"^((?:PROBE_)?TIMEOUT)(?:: \w+)? = ([\d.]+)", source, re.MULTILINE)
            if found and timeout <= float(found[2]):
                place = f"{container.file}: {container.name}.healthcheck.timeout={timeout:g}s"
                yield f"{place}: must be longer than {file}: {found[1]}={found[2]}; change it to 5s"


@container_rule
def restart(container: Container) -> Iterator[str]:
    """A container that fails is started again."""
    definition = container.definition
    if definition and not definition.get("restart") and "restart_policy" not in definition.get("deploy", {}):
        fix = 'must be set; change it to unless-stopped, or "no" for a container that runs once'
        yield f"{container.describe('restart')}: {fix}"


@container_rule
def signals(container: Container) -> Iterator[str]:
    """The server itself receives the engine's SIGTERM, without a shell in between."""
    line = " ".join(container.command)
    if re.match(r"(\S*/)?(ba|da)?sh -\w*c ", line) and not re.search(r"\bexec ", line):
        text = container.command[-1]
        fix = "must be in exec form, because the shell does not forward SIGTERM; change it to"
        yield f"{container.command_place}={text}: {fix} {json.dumps(text.split())}"


@project_rule
def start_script(project: Project) -> Iterator[str]:
    """A script that starts the server is replaced by the server."""
    for container in project.containers:
        words = " ".join(container.command).split()[:4]
        for name in [Path(word).name for word in words if re.search(r"\.sh$|entrypoint", word)]:
            for depth in ("", "*/", "*/*/"):
                for path in project.directory.glob(depth + name):
                    text = path.read_text(errors="replace")
                    if not re.search(r"^\s*exec\s", text, re.MULTILINE):
                        last = (text.strip().splitlines() or [""])[-1]
                        fix = "must exec the server, because the shell does not forward SIGTERM"
                        file = path.relative_to(project.directory)
                        yield f"{file}: last line={last}: {fix}; change it to exec {last}"


# The edge


def served_containers(project: Project, directive: Directive) -> list[Container]:
    """The containers that a directive of the edge is about: one for sites/NAME.caddy, otherwise all."""
    servers = [container for container in project.containers if container.server is not None]
    return [it for it in servers if it.name == Path(directive.file).stem] or servers


@container_rule
def upstream_keep_alive(container: Container) -> Iterator[str]:
    """The proxy closes an idle connection before the server does; otherwise a request meets a closing one."""
    for value in container.keep_alives:
        if value.number <= PROXY_IDLE:
            fix = f"must be longer than a proxy's idle timeout ({PROXY_IDLE} s); change it to 75"
            yield f"{value}: {fix}"


@project_rule
def edge_keep_alive(project: Project) -> Iterator[str]:
    """The same for the idle timeout of this project's edge."""
    if not project.caddyfile or not project.caddyfile.named("reverse_proxy"):
        return
    directives = project.caddyfile.named("keepalive")
    if not directives and (values := shortest_keep_alive(project.containers)):
        fix = f"must be set and shorter than {values}; change it to keepalive 60s"
        yield f"{project.caddyfile.named('reverse_proxy')[0].file}: keepalive={CADDY_IDLE}s: {fix}"
    for directive in directives:
        value = shortest_keep_alive(served_containers(project, directive))
        idle = directive.seconds
        if value and idle is not None and idle >= float(value.rpartition("=")[2]):
            yield f"{directive}: must be shorter than {value}; change it to 60s"


def shortest_keep_alive(containers: list[Container]) -> str:
    """The description of the shortest keep-alive of these containers, or ""."""
    values = [value for container in containers for value in container.keep_alives]
    return str(min(values, key=lambda value: value.number)) if values else ""


@project_rule
def edge_response_timeout(project: Project) -> Iterator[str]:
    """The edge gives up on a request before a stopping server does, and before it stops itself."""
    if not project.caddyfile:
        return
    for directive in project.caddyfile.named("response_header_timeout"):
        for container in served_containers(project, directive):
            limit, timeout = container.request_timeout, directive.seconds
            if limit and timeout is not None and timeout > limit.number:
                yield f"{directive}: must be at most {limit}; change it to {limit.number:g}s"
        for ending in project.caddyfile.named("grace_period"):
            if ending.seconds is not None and (directive.seconds or 0) > ending.seconds:
                yield f"{ending}: must be at least {directive}; change it to {directive.value}"


@project_rule
def edge_variables(project: Project) -> Iterator[str]:
    """The edge's container has every variable that its files read without a default."""
    if project.caddyfile and project.edge:
        for name, place in project.caddyfile.unset.items():
            fix = f"must be in {project.edge.file}: {project.edge.name}.environment; change it there"
            yield f"{place}: {{${name}}}=: {fix}"


@project_rule
def edge_stop(project: Project) -> Iterator[str]:
    """The edge finishes its responses before the engine kills it."""
    if not project.caddyfile or not project.edge:
        return
    stop = seconds(project.edge.definition.get("stop_grace_period", "10s"))
    for directive in project.caddyfile.named("grace_period"):
        if directive.seconds is not None and directive.seconds + STOP_MARGIN >= stop:
            fix = f"must be longer than {directive}; change it to {directive.seconds + 5:.0f}s"
            yield f"{project.edge.describe('stop_grace_period', '10s')}: {fix}"


@project_rule
def edge_holds_requests(project: Project) -> Iterator[str]:
    """The edge holds a request for as long as the replacement of the only replica takes."""
    if not project.caddyfile:
        return
    for directive in project.caddyfile.named("lb_try_duration"):
        for container in served_containers(project, directive):
            graceful = container.graceful_timeout
            if directive.seconds is None or graceful is None or "DRAIN_SECONDS" not in container.environment:
                continue
            needed = container.drain_seconds + graceful.number + START_SECONDS
            if directive.seconds < needed:
                fix = f"must be at least DRAIN_SECONDS={container.drain_seconds:g} + {graceful}"
                yield f"{directive}: {fix} + {START_SECONDS} s of start; change it to {needed:g}s"


@project_rule
def edge_slow_clients(project: Project) -> Iterator[str]:
    """A client that sends its header slowly is disconnected, and a header fits into Gunicorn's limit."""
    if not project.caddyfile or not project.caddyfile.named("reverse_proxy"):
        return
    file = project.caddyfile.named("reverse_proxy")[0].file
    if not any(directive.seconds for directive in project.caddyfile.named("read_header")):
        fix = "must be set, because a slow client holds its connection; change it to read_header 5s"
        yield f"{file}: servers.timeouts.read_header=None: {fix}"
    for directive in project.caddyfile.named("max_header_size"):
        for container in served_containers(project, directive):
            if container.gunicorn is None or directive.bytes is None:
                continue
            limit = container.gunicorn.value("limit_request_field_size")
            if directive.bytes + HEADER_SLACK > limit.number:
                fix = f"must, with the {HEADER_SLACK} bytes that Go adds, be at most {limit}"
                yield f"{directive}: {fix}; change it to {int(limit.number) - HEADER_SLACK}"


# Memory and processes


@project_rule
def bodies(project: Project) -> Iterator[str]:
    """The application accepts every body that the edge lets through, and the edge's buffer has a bound."""
    if not project.caddyfile:
        return
    for directive in project.caddyfile.named("max_size"):
        for container in served_containers(project, directive):
            accepted = container.environment.get("MAX_BODY", "")
            limit = size(accepted)
            if limit is not None and directive.bytes is not None and directive.bytes > limit:
                place = f"{container.file}: {container.name}.environment.MAX_BODY={accepted}"
                yield f"{directive}: must be at most {place}; change it to {{$MAX_BODY}}"
    for directive in project.caddyfile.named("request_buffers"):
        if directive.value in ("-1", "unlimited"):
            yield f"{directive}: must have a bound, because it is memory of the edge; change it to 1MiB"


@container_rule
def uploads(container: Container) -> Iterator[str]:
    """Uploads fit into /tmp, and /tmp fits into the memory limit that it counts towards."""
    tmp = container.temporary_folders.get("/tmp")  # noqa: S108  only compared
    body = size(container.environment.get("MAX_BODY", ""))
    place = f"{container.file}: {container.name}.tmpfs./tmp.size="
    memory = int(number(container.limits["memory"]))
    if container.server is None or not tmp:
        return
    if body and tmp < UPLOADS * body:
        fix = f"must be at least {UPLOADS} x MAX_BODY={container.environment['MAX_BODY']}"
        yield f"{place}{mebibytes(tmp)}: {fix}; change it to {mebibytes(UPLOADS * body)}"
    if memory and tmp > memory // 2:
        fix = f"must be at most half of {container.name}.memory={mebibytes(memory)}, which it is part of"
        yield f"{place}{mebibytes(tmp)}: {fix}; change one of them"


@container_rule
def memory(container: Container) -> Iterator[str]:
    """All workers fit into the container's memory."""
    limit = int(number(container.limits["memory"])) // sizing.MEBIBYTE
    each = worker_memory(container.environment) // sizing.MEBIBYTE
    workers = container.workers
    if workers and limit and each and workers.number > 1 and workers.number * each > limit:
        fix = f"must be at most {limit // each:g} with {container.file}: {container.name}.memory={limit}m"
        yield f"{workers}: {fix} and {each:g} MiB each (WORKER_MEMORY_MB); change one of them"


@container_rule
def pids(container: Container) -> Iterator[str]:
    """All threads of all workers fit into the limit of processes."""
    limit, workers = number(container.limits["pids"]), container.workers
    if not workers or not limit:
        return
    needed = workers.number * (container.threads + OTHER_THREADS) + OTHER_PROCESSES
    if needed > limit:
        fix = f"must be at least {needed:g} for {workers} of {container.threads} threads; change it to"
        yield f"{container.file}: {container.name}.pids={limit:g}: {fix} {needed:g} (PIDS)"


@project_rule
def database_connections(project: Project) -> Iterator[str]:
    """PostgreSQL has a connection for every thread, also while an update runs one replica more.

    Each worker has one more for its readiness check. Only Gunicorn's threads are counted: an asynchronous
    application has a pool with a size of its own.
    """
    active = [it for it in project.containers if profiles.is_active(it.definition, project.profiles)]
    for database in (container for container in active if container.is_postgres):
        found = re.search(r"max_connections[= ](\d+)", " ".join(database.command))
        limit = int(found[1]) if found else MAX_CONNECTIONS
        needed, users = RESERVED_CONNECTIONS, []
        for container in active:
            if container.gunicorn is None or not uses_database(container, database.name):
                continue
            workers, each = container.workers, container.threads + 1
            if workers and container.uvicorn is None:
                needed += int((container.replicas + 1) * workers.number * each)
                users.append(f"{container.name} ({container.replicas} + 1) x {workers.number:g} x {each}")
        if users and needed > limit:
            sum_of = f"{' + '.join(users)} + {RESERVED_CONNECTIONS}"
            compose = env_files.read_text(project.directory / project.compose_file)
            variable = "POSTGRES_MAX_CONNECTIONS" in compose
            fix = f"POSTGRES_MAX_CONNECTIONS={needed} in .env" if variable else f"-c max_connections={needed}"
            place = f"{database.file}: {database.name}.max_connections={limit}"
            yield f"{place}: must be at least {needed} = {sum_of}; change it to {fix}"


@project_rule
def database_processes(project: Project) -> Iterator[str]:
    """Each connection is a process, and fits into the limit of processes."""
    for database in (container for container in project.containers if container.is_postgres):
        found = re.search(r"max_connections[= ](\d+)", " ".join(database.command))
        pids, needed = number(database.limits["pids"]), int(found[1]) if found else MAX_CONNECTIONS
        needed += DATABASE_PROCESSES
        if pids and needed > pids:
            fix = f"must be at least {needed} for its connections; change it to {needed} (PIDS)"
            yield f"{database.file}: {database.name}.pids={pids:g}: {fix}"


def uses_database(container: Container, database: str) -> bool:
    """Whether a variable of the container names this host in an address, or it waits for this service."""
    named = any(profiles.names_host(value, database) for value in container.environment.values())
    return named or database in (container.definition.get("depends_on") or {})


@project_rule
def active_profiles(project: Project) -> Iterator[str]:
    """Each active profile exists, and the services' addresses name active services."""
    services = {it.name: it.definition for it in project.containers if it.definition}
    if services:
        yield from profiles.problems(services, project.profiles, project.env_file.name)


# The servers


@container_rule
def sync_worker(container: Container) -> Iterator[str]:
    """A sync worker has no keep-alive, and one slow client occupies it."""
    if container.gunicorn is not None and container.gunicorn["worker_class"] == "sync":
        fix = "must be gthread: sync closes each connection that a proxy would keep open"
        yield f"{container.gunicorn.describe('worker_class')}: {fix}; change it, with threads=4"


@container_rule
def recycling(container: Container) -> Iterator[str]:
    """A recycled asyncio worker drops its connections."""
    gunicorn = container.gunicorn
    if gunicorn is not None and gunicorn["max_requests"] and ASYNCIO.search(gunicorn["worker_class"]):
        fix = f"must be 0 with {gunicorn.describe('worker_class')}, which would drop connections"
        yield f"{gunicorn.describe('max_requests')}: {fix}; change it to 0"


@container_rule
def heartbeat(container: Container) -> Iterator[str]:
    """The heartbeat's file is in memory: on a slow disk a working worker looks dead."""
    in_memory = ("/dev/shm", "/run", *container.temporary_folders)  # noqa: S108  only compared
    if container.gunicorn is None or not Path("/dev/shm").is_dir():  # noqa: S108  only looked for
        return
    folder = str(container.gunicorn["worker_tmp_dir"] or "/tmp")  # noqa: S108  Gunicorn's default
    if not folder.startswith(in_memory):
        fix = "must be in memory; change it to '/dev/shm'"
        yield f"{container.gunicorn.describe('worker_tmp_dir')}: {fix}"


@container_rule
def control_socket(container: Container) -> Iterator[str]:
    """On a read-only root file system, Gunicorn's control socket logs an error at each start."""
    read_only, gunicorn = container.definition.get("read_only"), container.gunicorn
    if read_only and gunicorn is not None and gunicorn["control_socket_disable"] is False:
        fix = f"must be True with {container.describe('read_only')}; change it to True"
        yield f"{gunicorn.describe('control_socket_disable')}: {fix}"


@container_rule
def trusted_proxies(container: Container) -> Iterator[str]:
    """On a published port, only the proxy may name the client's address."""
    if container.definition and not container.definition.get("ports"):
        return
    fix = "must name the proxy: on a published port, * trusts every client; change it to its address"
    if "*" in (value := container.environment.get("FORWARDED_ALLOW_IPS", "")):
        yield f"{container.file}: {container.name}.environment: FORWARDED_ALLOW_IPS={value}: {fix}"
    for settings in (container.gunicorn, container.uvicorn):
        if settings is not None and "*" in str(settings["forwarded_allow_ips"]):
            yield f"{settings.describe('forwarded_allow_ips')}: {fix}"


@container_rule
def development(container: Container) -> Iterator[str]:
    """Nothing reloads, and no visitor sees a traceback."""
    for settings in (container.gunicorn, container.uvicorn):
        if settings is not None and settings["reload"]:
            yield f"{settings.describe('reload')}: must be off in production; change it to false"
    for word in [word for word in container.command if word in ("--debug", "runserver", "dev")]:
        place = f"{container.command_place}={' '.join(container.command)}"
        yield f"{place}: {word} must not run in production; change it to a server"
    for name, value in container.environment.items():
        if re.fullmatch("(DJANGO_|FLASK_)?DEBUG", name) and value.lower() in ON:
            place = f"{container.file}: {container.name}.environment.{name}={value}"
            yield f"{place}: must be off in production; change it to 0"


@project_rule
def uvicorn_keys(project: Project) -> Iterator[str]:
    """Each key of uvicorn.json, and each variable UVICORN_..., is an option of Uvicorn."""
    known = uvicorn_options()
    for container in project.containers:
        places = container.uvicorn.places if container.uvicorn is not None else {}
        for key in [key for key, place in places.items() if place in ("uvicorn.json", container.file)]:
            if not known:
                project.not_checked.append("uvicorn.json's keys: Uvicorn is not installed here")
            elif key not in known and container.uvicorn is not None:
                near = ", ".join(difflib.get_close_matches(key, known, 1)) or "one of uvicorn --help"
                place = container.uvicorn.describe(key)
                yield f"{place}: must be an option of Uvicorn; change it to {near}"


@project_rule
def gunicorn_names(project: Project) -> Iterator[str]:
    """Each name that gunicorn.conf.py only assigns is a setting of Gunicorn, which ignores others."""
    for container in project.containers:
        gunicorn = container.gunicorn
        for name in gunicorn.unknown if gunicorn is not None else []:
            near = ", ".join(difflib.get_close_matches(name, gunicorn or [], 1)) or "one of gunicorn --help"
            file = gunicorn.file if gunicorn is not None else ""
            yield f"{file}: {name}: must be a setting of Gunicorn, which ignores it; change it to {near}"


# Images and isolation


@container_rule
def published_ports(container: Container) -> Iterator[str]:
    """Only the edge is reachable from other machines."""
    for port in container.definition.get("ports", []):
        address = port.get("host_ip") or "0.0.0.0"  # noqa: S104  Compose's default
        if not container.is_proxy and not address.startswith(("127.", "::1")):
            rest = f":{port.get('published', '')}:{port['target']}"
            fix = f"must be on loopback, because it bypasses the proxy; change it to 127.0.0.1{rest}"
            yield f"{container.file}: {container.name}.ports={address}{rest}: {fix}"


@project_rule
def pinned_images(project: Project) -> Iterator[str]:
    """The image that is pulled tomorrow is of the same release; the edge's of the same minor release."""
    images = [(f"Dockerfile: FROM={image}", image) for image in project.dockerfile.bases]
    for container in project.containers:
        build = container.definition.get("build") or {}
        if not build and container.definition:
            images.append((container.describe("image"), container.definition.get("image", "scratch")))
        for name, value in (build.get("args") or {}).items():
            if name.endswith("_IMAGE") and value and value not in project.dockerfile.stages:
                images.append((f"{container.file}: {container.name}.build.args.{name}={value}", value))
    for place, image in images:
        path, _, tag = image.rpartition("/")[2].partition(":")
        if "@" in image or "$" in image or image == "scratch":
            continue
        if not re.search(r"\d", tag):
            name = image.removesuffix(f":{tag}") if tag else image
            yield f"{place}: must name a release; change it to {name}:VERSION"
        elif path == "caddy" and not re.match(r"v?\d+\.\d", tag):
            yield f"{place}: must name a minor release; change it to {image.partition(':')[0]}:MAJOR.MINOR"


@container_rule
def user(container: Container) -> Iterator[str]:
    """A process that is taken over is not root."""
    name = str(container.definition.get("user") or container.stage.instruction("USER"))
    if container.stage.base and name.partition(":")[0] in ("", "0", "root"):
        fix = "must not be root; change it to a number such as 10001:10001"
        yield f"Dockerfile: {container.name}.USER={name}: {fix}"


@container_rule
def posture(container: Container) -> Iterator[str]:
    """A service that this project builds has nothing to write, no privilege, and bounds."""
    if not container.is_built_here:
        return
    definition = container.definition
    logging = definition.get("logging", {})
    bounded = "max-size" in logging.get("options", {}) or logging.get("driver", "json-file") != "json-file"
    added = set(definition.get("cap_add") or []) - {"NET_BIND_SERVICE"}
    options = str(definition.get("security_opt"))
    for key, wrong, must in (
        ("read_only", not definition.get("read_only"), "true, with tmpfs: [/tmp]"),
        ("cap_drop", definition.get("cap_drop") != ["ALL"], "[ALL]"),
        ("cap_add", added, "nothing but NET_BIND_SERVICE"),
        ("security_opt", "no-new-privileges" not in options, "[no-new-privileges:true]"),
        ("privileged", definition.get("privileged"), "false"),
        ("logging", not bounded, 'bounded: options: {max-size: 10m, max-file: "3"}'),
    ):
        if wrong:
            yield f"{container.describe(key)}: must be {must}; change it to that"
    for name in [name for name, value in container.limits.items() if not value]:
        if name == "cpus" and container.is_without_cpu_limit:
            continue
        place = f"{container.file}: {container.name}.deploy.resources.limits.{name}=None"
        yield f"{place}: must be set; change it to a limit"


@project_rule
def swarm_stack(project: Project) -> Iterator[str]:
    """The stack for Docker Swarm has the posture, limits and times of the Compose file."""
    yield from swarm.findings(project)


# The .env files


@project_rule
def deployment_variables(project: Project) -> Iterator[str]:
    """Each variable of .env is within its bounds."""
    values = project.variables
    yield from variables.problems(values, project.env_file.name) if project.caddyfile else []


@project_rule
def ambiguous_variables(project: Project) -> Iterator[str]:
    """Compose and process mode read the same value from each line of a .env file."""
    for file, text in project.environment_files().items():
        for number_, name, problem in env_files.ambiguous_lines(text):
            yield f"{file}: line {number_}{f': {name}' if name else ''}: {problem}"


@project_rule
def unused_variables(project: Project) -> Iterator[str]:
    """Each variable of .env has an effect: the Compose file uses it, or a service receives it."""
    services = [container for container in project.containers if container.definition]
    if not services or not project.env_file.is_file():
        return
    file = project.env_file.name
    readers = [project.directory / project.compose_file, *project.directory.glob("deploy/*.yml")]
    text = "\n".join(env_files.read_text(path) for path in readers)
    example = env_files.names(re.sub(r"^#(?=[A-Z])", "", example_of(project), flags=re.MULTILINE))
    for name, line in env_files.names(env_files.read_text(project.env_file)).items():
        # deploy/rollout.py writes and reads PREVIOUS_VERSION.
        tools = name.startswith(("COMPOSE_", "DOCKER_")) or name == "PREVIOUS_VERSION"
        used = tools or re.search(rf"\$\{{?{re.escape(name)}\b", text)
        received = any(name in service.environment for service in services)
        if name in REPLACED:
            fix = f"must go: nothing reads it any more; change it to {REPLACED[name]}"
            yield f"{file}: line {line}: {name}: {fix}"
        elif not used and not received and name not in example:
            yield f"{file}: line {line}: {name}: {no_effect(name, services)}"


def example_of(project: Project) -> str:
    """The text of .env.example."""
    return env_files.read_text(project.directory / ".env.example")


def no_effect(name: str, services: list[Container]) -> str:
    """What to do with a variable of an application that stands in .env."""
    applications = [it.name for it in services if it.is_long_running and not it.is_proxy] or ["SERVICE"]
    own = [it for it in applications if name.startswith(f"{it.upper()}_")]
    files = " or ".join(f".env.{it}" for it in own or applications)
    return f"must not be here, because Compose gives .env to no container; change the file to {files}"


def seconds(duration: object) -> float:
    """A duration as Compose writes it, such as 1m0s."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", str(duration))
    return sum(float(count) * units[unit] for count, unit in parts)


def mebibytes(count: int) -> str:
    """A size as Compose writes it."""
    return f"{count // sizing.MEBIBYTE}m"


def findings(project: Project) -> list[str]:
    """What must change, each once."""
    found = [finding for function in PROJECT_RULES for finding in function(project)]
    for function in CONTAINER_RULES:
        found += [finding for container in project.containers for finding in function(container)]
    if isinstance(project, kubernetes.Overlay):
        found = [kubernetes.translated(project, finding) for finding in found]
        found += kubernetes.problems(project)
    return list(dict.fromkeys(project.broken + found))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m checks.doctor", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path(), help="of the project")
    project = Project(parser.parse_args().directory.resolve())
    overlays, reason = kubernetes.overlays(project.directory)
    projects = [project, *overlays]
    found = list(dict.fromkeys(finding for it in projects for finding in findings(it)))
    not_checked = [it for project in projects for it in project.not_checked] + ([reason] if reason else [])
    for line in found + [f"not checked: {reason}" for reason in dict.fromkeys(not_checked)]:
        print(line)
    names = [container.name for container in project.containers] + [it.folder for it in overlays]
    rules = len(CONTAINER_RULES) + len(PROJECT_RULES) + (len(kubernetes.RULES) if overlays else 0)
    print(f"{len(found)} findings, {rules} rules: {', '.join(names) or 'nothing to look at'}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
