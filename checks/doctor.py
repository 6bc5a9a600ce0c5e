"""`python -m serving.doctor`: whether the files of the project in this directory agree with each other.

Deployments break between files. serving/project.py reads those that are here; each rule below
yields `file: setting=value: must be ...; change ...`, and the exit code is 1 when one does.
"""

import difflib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from serving import health, sizing
from serving.project import Process, Project, Settings

# Seconds: nginx, like our edge, keeps an idle connection to a server this long.
PROXY_IDLE = 60
ASYNCIO = re.compile("asgi|asyncio|uvicorn|aiohttp", re.IGNORECASE)
ON = ("1", "true", "yes", "on")

Rule = Callable[[Process], Iterator[str]]
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Have it asked about every process; it yields what must change."""
    RULES.append(function)
    return function


@rule
def grace(p: Process) -> Iterator[str]:
    """The server finishes what it does before the engine kills it."""
    server, name = p.gunicorn, "graceful_timeout"
    if not server:
        server, name = p.uvicorn, "timeout_graceful_shutdown"
    stop = str(p.service.get("stop_grace_period", "10s"))
    if p.stays and server[name] is not None and number(server[name]) >= seconds(stop):
        fix = f"must be longer than {server.say(name)}; change it to {number(server[name]) + 5:.0f}s"
        yield f"{p.say('stop_grace_period', '10s')}: {fix}"


@rule
def graceful_end(p: Process) -> Iterator[str]:
    """Unless told how long, Uvicorn waits for ever; inside Gunicorn's worker, for less than Gunicorn."""
    name, outer = "timeout_graceful_shutdown", p.gunicorn["graceful_timeout"]
    if p.uvicorn and p.uvicorn[name] is None:
        yield f"{p.uvicorn.say(name)}: must be set, or one slow client holds up every stop; change it to 20"
    elif p.uvicorn and outer is not None and number(p.uvicorn[name]) >= outer:
        fix = f"must be shorter than {p.gunicorn.say('graceful_timeout')}; change it to {outer - 5}"
        yield f"{p.uvicorn.say(name)}: {fix}"


@rule
def keep_alive(p: Process) -> Iterator[str]:
    """The proxy, not the server, closes an idle connection; else a request meets a closing one."""
    for server, name in ((p.gunicorn, "keepalive"), (p.uvicorn, "timeout_keep_alive")):
        if server and server["worker_class"] != "sync" and number(server[name]) <= PROXY_IDLE:
            fix = f"must be longer than a proxy's idle timeout ({PROXY_IDLE} s); change it to 75"
            yield f"{server.say(name)}: {fix}"


@rule
def sync_worker(p: Process) -> Iterator[str]:
    """A sync worker knows no keep-alive, and one slow client has it to itself."""
    if p.gunicorn["worker_class"] == "sync":
        fix = (
            "must be gthread: sync closes each connection that a proxy would keep; change it, with threads=4"
        )
        yield f"{p.gunicorn.say('worker_class')}: {fix}"


@rule
def recycling(p: Process) -> Iterator[str]:
    """A recycled asyncio worker drops the connections that it holds."""
    if p.gunicorn["max_requests"] and ASYNCIO.search(p.gunicorn["worker_class"]):
        fix = f"must be 0 with {p.gunicorn.say('worker_class')}: it would drop connections; change it to 0"
        yield f"{p.gunicorn.say('max_requests')}: {fix}"


@rule
def memory(p: Process) -> Iterator[str]:
    """All workers fit into the container's memory."""
    server = p.gunicorn or p.uvicorn
    workers, each = number(server["workers"], 1), number(p.environ.get("WORKER_MEMORY_MB"), 128)
    limit = int(p.limits["memory"] or 0) // sizing.MEBIBYTE
    if server and limit and workers * each > limit:
        fix = f"must be at most {limit // each:g} with {p.file}: {p.name}.memory={limit}m"
        yield f"{server.say('workers')}: {fix} and {each:g} MiB each (WORKER_MEMORY_MB); change one of them"


@rule
def heartbeat(p: Process) -> Iterator[str]:
    """The heartbeat's file is in memory: a slow disk would look like a dead worker."""
    mounts = [mount.partition(":")[0] for mount in p.service.get("tmpfs", [])]
    memory = ("/dev/shm", "/run", *mounts)  # noqa: S108  only compared
    folder = str(p.gunicorn["worker_tmp_dir"] or "/tmp")  # noqa: S108  Gunicorn's default
    if p.gunicorn and Path(memory[0]).is_dir() and not folder.startswith(memory):
        yield f"{p.gunicorn.say('worker_tmp_dir')}: must be in memory; change it to '/dev/shm'"


@rule
def control_socket(p: Process) -> Iterator[str]:
    """On a read-only root, Gunicorn's control socket is an error line at each start."""
    if p.service.get("read_only") and p.gunicorn["control_socket_disable"] is False:
        fix = f"must be True with {p.say('read_only')}; change it to True"
        yield f"{p.gunicorn.say('control_socket_disable')}: {fix}"


@rule
def trust(p: Process) -> Iterator[str]:
    """Where others than the proxy can connect, not everybody names the client's address."""
    if p.service and not p.service.get("ports"):
        return
    variable = Settings(f"{p.file}: {p.name}.environment")
    variable["FORWARDED_ALLOW_IPS"] = p.environ.get("FORWARDED_ALLOW_IPS")
    names = ("FORWARDED_ALLOW_IPS", "forwarded_allow_ips", "forwarded_allow_ips")
    for source, name in zip((variable, p.gunicorn, p.uvicorn), names, strict=True):
        if "*" in str(source[name]):
            fix = "must name the proxy: on a published port, * believes everybody; change it to its address"
            yield f"{source.say(name)}: {fix}"


@rule
def health_check(p: Process) -> Iterator[str]:
    """Somebody notices a service that hangs, and not before it had time to start."""
    check = p.service.get("healthcheck", {})
    if p.stays and (check.get("disable") or not check.get("test")) and "HEALTHCHECK" not in p.stage:
        yield f"{p.say('healthcheck')}: must be there; change it to a test such as python -m serving.health"
    if not p.stays or not check.get("test"):
        return
    at = f"{p.file}: {p.name}.healthcheck"
    timeout, interval = seconds(check.get("timeout", "30s")), seconds(check.get("interval", "30s"))
    if timeout > interval:
        yield f"{at}.timeout={timeout:g}s: must be at most its interval={interval:g}s; change one of the two"
    if "serving.health" in check["test"] and timeout <= health.PROBE_TIMEOUT:
        fix = f"must be longer than serving/health.py: PROBE_TIMEOUT={health.PROBE_TIMEOUT}; change it to 5s"
        yield f"{at}.timeout={timeout:g}s: {fix}"
    boot = number(p.uvicorn["timeout_worker_healthcheck"] or p.gunicorn["timeout"])
    start = seconds(check.get("start_period", "0s"))
    if start + interval * int(check.get("retries", 3)) <= boot:
        fix = f"must, with interval x retries, be longer than a worker's boot ({boot:g} s); change it to 60s"
        yield f"{at}.start_period={start:g}s: {fix}"


@rule
def ports(p: Process) -> Iterator[str]:
    """The edge is the only door."""
    for port in p.service.get("ports", []):
        address = port.get("host_ip") or "0.0.0.0"  # noqa: S104  Compose's default
        if not p.edge and not address.startswith(("127.", "::1")):
            rest = f":{port.get('published', '')}:{port['target']}"
            fix = f"must be of loopback: it leads past the proxy; change it to 127.0.0.1{rest}"
            yield f"{p.file}: {p.name}.ports={address}{rest}: {fix}"


@rule
def first_process(p: Process) -> Iterator[str]:
    """The server itself gets the engine's SIGTERM: no shell stands in between."""
    line = " ".join(p.command)
    if re.match(r"(\S*/)?(ba|da|)sh -\w*c ", line) and not re.search(r"\bexec ", line):
        text = p.command[-1]
        fix = "must be in exec form: the shell keeps SIGTERM to itself; change it to"
        yield f"{p.at}={text}: {fix} {json.dumps(text.split())}"


@rule
def script(p: Process) -> Iterator[str]:
    """A script that starts the server becomes the server."""
    names = [
        Path(word).name for word in " ".join(p.command).split()[:4] if re.search(r"\.sh$|entrypoint", word)
    ]
    for name in names:
        for path in (file for depth in ("", "*/", "*/*/") for file in p.project.directory.glob(depth + name)):
            if not re.search(r"^\s*exec\s", path.read_text(errors="replace"), re.MULTILINE):
                last = path.read_text(errors="replace").strip().splitlines()[-1]
                fix = f"must exec the server: the shell keeps SIGTERM to itself; change it to exec {last}"
                yield f"{path.relative_to(p.project.directory)}: last line={last}: {fix}"


@rule
def restart(p: Process) -> Iterator[str]:
    """What fails comes back."""
    if p.service and not p.service.get("restart") and "restart_policy" not in p.service.get("deploy", {}):
        yield f'{p.say("restart")}: must be set; change it to unless-stopped, or "no" for what runs once'


@rule
def pinned(p: Process) -> Iterator[str]:
    """Tomorrow's image is of the same release."""
    images = [] if "build" in p.service else [(p.say("image"), p.service.get("image", "scratch"))]
    for at, image in images + [(f"Dockerfile: FROM={image}", image) for image in p.project.dockerfile.bases]:
        tag = image.rpartition("/")[2].partition(":")[2]
        if not re.search(r"@|\$|^scratch$", image) and tag in ("", "latest"):
            yield f"{at}: must name a release; change it to {image.removesuffix(':latest')}:VERSION"


@rule
def user(p: Process) -> Iterator[str]:
    """Whoever breaks in is nobody."""
    name = str(p.service.get("user") or p.stage.get("USER", ""))
    if p.stage and name.partition(":")[0] in ("", "0", "root"):
        yield f"Dockerfile: {p.name}.USER={name}: must not be root; change it to a number such as 10001:10001"


@rule
def posture(p: Process) -> Iterator[str]:
    """Nothing to write, nothing to gain, nothing without bounds."""
    if not p.own:
        return
    logging, s = p.service.get("logging", {}), p.service
    unbounded = logging.get("driver", "json-file") == "json-file" and "max-size" not in logging.get(
        "options", {}
    )
    for key, wrong, must in (
        ("read_only", not s.get("read_only"), "true, with tmpfs: [/tmp]"),
        ("cap_drop", s.get("cap_drop") != ["ALL"], "[ALL]"),
        ("cap_add", set(s.get("cap_add", [])) - {"NET_BIND_SERVICE"}, "nothing but NET_BIND_SERVICE"),
        ("security_opt", "no-new-privileges" not in str(s.get("security_opt")), "[no-new-privileges:true]"),
        ("privileged", s.get("privileged"), "false"),
        ("logging", unbounded, 'bounded: options: {max-size: 10m, max-file: "3"}'),
    ):
        if wrong:
            yield f"{p.say(key)}: must be {must}; change it to that"
    for name in (name for name, value in p.limits.items() if not value):
        yield f"{p.file}: {p.name}.deploy.resources.limits.{name}=None: must be set; change it"


@rule
def development(p: Process) -> Iterator[str]:
    """Nothing reloads, and no visitor sees a traceback."""
    for server in (p.gunicorn, p.uvicorn):
        if server["reload"]:
            yield f"{server.say('reload')}: must be off in production; change it to false"
    for word in [word for word in p.command if word in ("--debug", "runserver", "dev")]:
        yield f"{p.at}={' '.join(p.command)}: {word} must not run in production; change it to a server"
    for name in [name for name in p.environ if re.fullmatch("(DJANGO_|FLASK_)?DEBUG", name)]:
        if p.environ[name].lower() in ON:
            at = f"{p.file}: {p.name}.environment.{name}={p.environ[name]}"
            yield f"{at}: must be off in production; change it to 0"


@rule
def known_keys(p: Process) -> Iterator[str]:
    """No key of uvicorn.json is a typing error."""
    keys = [key for key, origin in p.uvicorn.origins.items() if origin == "uvicorn.json"]
    try:
        known = [str(option.name) for option in importlib.import_module("uvicorn").main.params]
    except ImportError:
        known = keys
        p.project.unchecked += ["uvicorn.json's keys: Uvicorn is not installed here"][: len(keys)]
    for key in keys:
        if key not in known:
            near = ", ".join(difflib.get_close_matches(key, known, 1)) or "one of uvicorn --help"
            yield f"{p.uvicorn.say(key)}: must be an option of Uvicorn; change it to {near}"


def number(value: object, default: float = 0) -> float:
    """A setting as a number; what is none, the server itself refuses."""
    try:
        return float(str(value))
    except ValueError:
        return default


def seconds(duration: str) -> float:
    """A duration as Compose writes it, such as 1m0s."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+)(ms|h|m|s)", duration))


def findings(project: Project) -> list[str]:
    """What must change, each once."""
    found = [finding for function in RULES for p in project.processes for finding in function(p)]
    return list(dict.fromkeys(project.broken + found))


def main() -> None:
    """The command line."""
    project = Project(Path())
    found = findings(project)
    for line in found + [f"not checked: {reason}" for reason in dict.fromkeys(project.unchecked)]:
        print(line)
    names = ", ".join(process.name for process in project.processes) or "nothing to look at"
    print(f"{len(found)} findings, {len(RULES)} rules: {names}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
