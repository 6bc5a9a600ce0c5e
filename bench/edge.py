"""`make bench PART=edge` and `PART=hardening`: what the edge costs, and what the hardening costs.

The ways to a service take turns over several rounds, on the same containers, with the limits of
docker-compose.yml: our edge, a short Caddyfile, and nginx and HAProxy with a short configuration
each. The load asks the containers at their own addresses, so this needs Linux.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.latency import at_rate, percentiles
from bench.load import CONNECTIONS, load, say, spread
from bench.modes import ROOT

# Many short turns, because a slow moment of the machine then affects every way alike.
ROUNDS, SECONDS = 8, 2
# Service -> the port on which every proxy serves it over plain HTTP.
PORTS = {"flask": 8002, "fastapi": 8003}
TLS_PORT = 8443
# Of what our edge answers at saturation; every way gets the same rate.
LATENCY_SHARE, LATENCY_ROUNDS = 0.5, 5


@dataclass(frozen=True)
class Way:
    """A container that is asked ("": the service itself), and how."""

    name: str
    container: str
    program: str = ""
    protocol: str = ""


EDGE, YARDSTICK = "our edge", "short Caddyfile"
WAYS = (
    Way("direct", ""),
    Way(EDGE, "edge", "caddy"),
    Way(YARDSTICK, "short", "caddy"),
    Way("short Caddyfile and log", "logging", "caddy"),
    Way(f"{EDGE} without a log", "quiet", "caddy"),
)
# Left out of a quick run.
MORE_WAYS = (
    Way("nginx", "nginx", "nginx"),
    Way("HAProxy", "haproxy", "haproxy"),
    Way(f"{EDGE}, TLS", "edge", "caddy", "h1"),
    Way(f"{YARDSTICK}, TLS", "short", "caddy", "h1"),
    Way(f"{EDGE}, TLS, HTTP/2", "edge", "caddy", "h2"),
    Way(f"{YARDSTICK}, TLS, HTTP/2", "short", "caddy", "h2"),
)

SHORT = (
    ":{port} {{\n\tencode\n\treverse_proxy {service}:8000{added}\n}}\n"
    "https://{service}.localhost:{tls} {{\n\ttls internal\n"
    "\tencode\n\treverse_proxy {service}:8000{added}\n}}\n"
)
NGINX = """
worker_processes 1; pid /tmp/nginx.pid; error_log stderr; events { worker_connections 1024; }
http { access_log off; gzip on; proxy_http_version 1.1; proxy_set_header Connection "";
%s}
"""
NGINX_SITE = (
    "upstream {service} {{ server {service}:8000; keepalive 256; }}\n"
    "server {{ listen {port}; location / {{ proxy_pass http://{service}; }} }}\n"
)
HAPROXY = (
    "global\n maxconn 1024\ndefaults\n mode http\n compression algo gzip\n timeout connect 5s\n"
    " timeout client 60s\n timeout server 60s\n"
)
HAPROXY_SITE = "listen {service}\n bind :{port}\n server one {service}:8000\n"

# The image and the limits of our edge, and Caddy's own settings.
CADDY = """
  {name}:
    extends: {{file: {root}/docker-compose.yml, service: edge}}
    command: [sh, -c, 'printf "%s" "$$TEXT" | exec caddy run --adapter caddyfile --config -']
    environment: !override {{TEXT: {text}, XDG_DATA_HOME: /tmp/data}}
    ports: !reset []
    volumes: !reset []
    healthcheck: {{test: [CMD, wget, -q, -Y, "off", -O, "-", "http://127.0.0.1:8002/livez"]}}
"""
QUIET = """
  quiet:
    extends: {{file: {root}/docker-compose.yml, service: edge}}
    environment: {{EDGE_ACCESS_LOG: "off", XDG_DATA_HOME: /tmp/data}}
    ports: !reset []
    volumes: !reset []
"""
# The same limits for the others.
OTHER = """
  {name}:
    image: {image}
    entrypoint: [sh, -c, 'printf "%s" "$$TEXT" >/tmp/configuration && exec {command}']
    user: root
    environment: {{TEXT: {text}}}
    networks: [edge-flask, edge-fastapi]
    depends_on: {{flask: {{condition: service_healthy}}, fastapi: {{condition: service_healthy}}}}
    deploy: {{resources: {{limits: {{cpus: "1.0", memory: 512m}}}}}}
"""
OTHERS = {
    "nginx": ("nginx:1.30", "nginx -c /tmp/configuration -g 'daemon off;'", NGINX, NGINX_SITE),
    "haproxy": ("haproxy:3.2", "haproxy -f /tmp/configuration", HAPROXY + "%s", HAPROXY_SITE),
}

# Variant of Flask's service -> what is taken from its block in docker-compose.yml.
SHIPPED = "as shipped"
HARDENING = {
    SHIPPED: "",
    "writable root": "read_only: false",
    "all default capabilities": "cap_drop: !reset []",
    "new privileges": "security_opt: !reset []",
    "no limit of memory": 'memswap_limit: 0\n    deploy: {resources: {limits: {memory: "0"}}}',
    "no limit of processes": "deploy: {resources: {limits: {pids: 0}}}",
    "no init process": "init: false",
}
VARIANT = """
  {name}:
    extends: {{file: {root}/docker-compose.yml, service: flask}}
    build: !reset null
    pull_policy: never
    {change}
"""


class Stack:
    """Containers as a Compose project of its own that publishes no port."""

    def __init__(self, override: Path, services: str) -> None:
        override.write_text("services:\n  edge: {ports: !reset []}\n" + services)
        files = ("--file", str(ROOT / "docker-compose.yml"), "--file", str(override))
        self.command = ("docker", "compose", "--project-name", f"bench-{os.getpid()}", *files)

    def compose(self, *arguments: str) -> str:
        """The output of a command of Compose."""
        return _output(*self.command, *arguments)

    def address(self, container: str) -> str:
        """An address of the container. It has one in each network, and this machine reaches all of them."""
        identity = self.compose("ps", "--quiet", container).strip()
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        return _output("docker", "inspect", "--format", template, identity).split()[0]

    def cpu(self, container: str, program: str) -> float:
        """Microseconds of CPU time that the program has used in the container, with its children."""
        script = f"for pid in $(pidof {program}); do cat /proc/$pid/stat; done"
        found = 0
        for line in self.compose("exec", "--no-TTY", container, "sh", "-c", script).splitlines():
            found += sum(map(int, line.rpartition(")")[2].split()[11:13]))
        return found * 1e6 / os.sysconf("SC_CLK_TCK")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def running(services: str, *names: str) -> Iterator[Stack]:
    """Start these services of docker-compose.yml and of `services`, and remove them."""
    with tempfile.TemporaryDirectory() as directory:
        stack = Stack(Path(directory) / "bench.yml", services)
        try:
            stack.compose("up", "--build", "--detach", "--wait", *names)
            yield stack
        finally:
            stack.compose("down", "--volumes", "--rmi", "local")


def proxies(ways: tuple[Way, ...]) -> str:
    """The definitions of the proxies on these ways besides our edge."""
    found = QUIET.format(root=ROOT)
    for name, added in {"short": "", "logging": "\n\tlog"}.items():
        sites = (SHORT.format(port=PORTS[it], service=it, added=added, tls=TLS_PORT) for it in PORTS)
        found += CADDY.format(name=name, root=ROOT, text=json.dumps("".join(sites)))
    for name, (image, command, text, site) in OTHERS.items():
        if name in {way.container for way in ways}:
            sites = (site.format(port=port, service=service) for service, port in PORTS.items())
            # Compose replaces $, and YAML reads the quotes of the command.
            text = json.dumps(text % "".join(sites)).replace("$", "$$")
            found += OTHER.format(name=name, image=image, command=command.replace("'", "''"), text=text)
    return found


def ask(way: Way, service: str, address: str, seconds: float) -> dict[str, float]:
    """Load the way at saturation: requests per second and errors."""
    if not way.protocol:
        return load(url(way, service, address), seconds)
    command = ["h2load", f"--clients={CONNECTIONS}", f"--duration={seconds}", "--threads=1"]
    command += ["--h1"] * (way.protocol == "h1") + [f"--connect-to={address}:{TLS_PORT}"]
    output = _output(*command, f"https://{service}.localhost:{TLS_PORT}/")
    # The last requests, which the end of the time cut off, are not counted.
    done, succeeded = map(int, re.findall(r"(\d+) done, (\d+) succeeded", output)[0])
    return {"rate": succeeded / seconds, "errors": float(done - succeeded)}


def url(way: Way, service: str, address: str) -> str:
    """The address of the service's page on this way."""
    return f"http://{address}:{PORTS[service] if way.container else 8000}/"


def measure(stack: Stack, ways: tuple[Way, ...], service: str, rounds: int, seconds: float) -> dict[str, Any]:
    """For each way its figures, and their ratios to the yardstick, round by round."""
    addresses = {way.name: stack.address(way.container or service) for way in ways}
    for way in ways:
        ask(way, service, addresses[way.name], 1)
    turns: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways:
            cpu = stack.cpu(way.container, way.program) if way.program else 0
            figures = ask(way, service, addresses[way.name], seconds)
            if way.program:
                figures["cpu"] = stack.cpu(way.container, way.program) - cpu
                figures["cpu"] /= max(1, figures["rate"] * seconds)
            turns[way.name].append(figures)
            say(f"round {number + 1}/{rounds}  {figures['rate']:6.0f}/s  {service}, {way.name}")
    found = summary(turns, YARDSTICK)
    plain = [way for way in ways if way.name in ("direct", EDGE, YARDSTICK)]
    rate = found[EDGE]["rate"]["median"] * LATENCY_SHARE
    answers: dict[str, list[list[float]]] = {way.name: [] for way in plain}
    for _ in range(1 if rounds == 1 else LATENCY_ROUNDS):
        for way in plain:
            answers[way.name].append(at_rate(url(way, service, addresses[way.name]), rate, seconds))
    for name, those in answers.items():
        found[name]["latency"] = percentiles(those) | {"rate": round(rate)}
    return found


def summary(turns: Mapping[str, list[dict[str, float]]], yardstick: str) -> dict[str, Any]:
    """For each name the median and the quartiles of its figures and of their ratios to the yardstick."""
    found: dict[str, Any] = {}
    for way, figures in turns.items():
        found[way] = {"n": len(figures), "errors": sum(int(it["errors"]) for it in figures)}
        pairs = [*zip(figures, turns[yardstick], strict=True)]
        for name in ("rate", "cpu"):
            if name in figures[0]:
                found[way][name] = spread([it[name] for it in figures], 1)
            if name in figures[0] and name in turns[yardstick][0]:
                found[way][f"{name}_ratio"] = spread([it[name] / other[name] for it, other in pairs], 2)
    return found


def run(quick: bool) -> dict[str, Any]:
    """The figures of the ways to each service."""
    ways = WAYS if quick else WAYS + MORE_WAYS
    containers = {way.container for way in ways} - {""}
    with running(proxies(ways), *PORTS, *sorted(containers)) as stack:
        sizes = (1, 1) if quick else (ROUNDS, SECONDS)
        return {service: measure(stack, ways, service, *sizes) for service in PORTS}


def run_hardening(quick: bool) -> dict[str, Any]:
    """Flask's container as shipped, and without one restriction at a time."""
    names = {variant: f"variant-{number}" for number, variant in enumerate(HARDENING)}
    services = "".join(
        VARIANT.format(name=names[variant], root=ROOT, change=change) for variant, change in HARDENING.items()
    )
    # The variants have the image of the service itself.
    with running(services, "flask", *names.values()) as stack:
        urls = {variant: f"http://{stack.address(name)}:8000/" for variant, name in names.items()}
        for each in urls.values():
            load(each, 1)
        turns: dict[str, list[dict[str, float]]] = {variant: [] for variant in urls}
        for number in range(1 if quick else ROUNDS):
            for variant, each in urls.items():
                turns[variant].append(load(each, SECONDS))
            say(f"round {number + 1}, hardening")
        return summary(turns, SHIPPED)
