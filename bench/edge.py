"""`make bench-edge`: what the edge costs, next to a short Caddyfile and to no proxy.

The ways to a service take turns over several rounds, on the same containers, with the limits of
docker-compose.yml. wrk asks the containers at their own addresses, so this needs Linux.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import report
from bench.__main__ import load, save, say
from bench.modes import ROOT

# Many short turns, because a slow moment of the machine then affects every way alike.
ROUNDS, SECONDS = 15, 2
# Service -> the port on which our edge serves it over plain HTTP.
PORTS = {"flask": 8002, "fastapi": 8003}
SHORT = ":{port} {{\n\tencode\n\treverse_proxy {service}:8000{added}\n}}\n"
# Way to a service -> the container that is asked ("": the service itself).
EDGE, YARDSTICK = "our edge", "short Caddyfile"
WAYS = {"direct": "", EDGE: "edge", YARDSTICK: "short", "short Caddyfile and log": "logging"}
# The image and the limits of our edge, and Caddy's own settings.
OTHER = """
  {name}:
    extends: {{file: {root}/docker-compose.yml, service: edge}}
    command: [sh, -c, 'printf "%s" "$$TEXT" | exec caddy run --adapter caddyfile --config -']
    environment: !override {{TEXT: {text}}}
    ports: !reset []
    volumes: !reset []
    healthcheck: {{test: [CMD, wget, -q, -Y, "off", -O, "-", "http://127.0.0.1:8002/livez"]}}
"""


class Stack:
    """The ways to each service, as a Compose project of its own that publishes no port."""

    def __init__(self, override: Path) -> None:
        definitions = "services:\n  edge: {ports: !reset []}\n"
        for name, added in {"short": "", "logging": "\n\tlog"}.items():
            sites = (SHORT.format(port=port, service=it, added=added) for it, port in PORTS.items())
            definitions += OTHER.format(name=name, root=ROOT, text=json.dumps("".join(sites)))
        override.write_text(definitions)
        files = ("--file", str(ROOT / "docker-compose.yml"), "--file", str(override))
        self.command = ("docker", "compose", "--project-name", f"bench-edge-{os.getpid()}", *files)

    def compose(self, *arguments: str) -> str:
        """The output of a command of Compose."""
        return _output(*self.command, *arguments)

    def url(self, way: str, service: str) -> str:
        """The address of the service's page on this way."""
        container = self.compose("ps", "--quiet", WAYS[way] or service).strip()
        # In each of its networks it has an address, and this machine reaches all of them.
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        address = _output("docker", "inspect", "--format", template, container).split()[0]
        return f"http://{address}:{PORTS[service] if WAYS[way] else 8000}/"

    def cpu(self, way: str) -> float:
        """Microseconds of CPU time that Caddy on this way has used; 0 if there is none."""
        if not WAYS[way]:
            return 0
        text = self.compose("exec", "--no-TTY", WAYS[way], "sh", "-c", "cat /proc/$(pidof caddy)/stat")
        ticks = text.rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) * 1e6 / os.sysconf("SC_CLK_TCK")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def turn(stack: Stack, way: str, url: str, seconds: float) -> dict[str, float]:
    """One turn of one way: requests per second, and CPU time of the proxy for each request."""
    cpu = stack.cpu(way)
    figures = load(url, seconds)
    return figures | {"cpu": (stack.cpu(way) - cpu) / (figures["rate"] * seconds)}


def summary(turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """For each way the median and the range of its figures and of their ratios to the yardstick."""
    found: dict[str, Any] = {}
    for way, figures in turns.items():
        found[way] = {"n": len(figures), "errors": sum(int(it["errors"]) for it in figures)}
        for name in ("rate", "p99", "cpu"):
            found[way][name] = _spread([it[name] for it in figures], 1)
        pairs = list(zip(figures, turns[YARDSTICK], strict=True))
        for name in ("rate", "cpu"):
            found[way][f"{name}_ratio"] = _spread([it[name] / other[name] for it, other in pairs], 2)
    return found


def _spread(values: list[float], digits: int) -> dict[str, float]:
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def measure(stack: Stack, rounds: int, seconds: float) -> dict[str, Any]:
    """The summaries of every way to every service."""
    stack.compose("up", "--build", "--detach", "--wait", *PORTS, *filter(None, WAYS.values()))
    results = {}
    for service in PORTS:
        urls = {way: stack.url(way, service) for way in WAYS}
        for url in urls.values():
            load(url, 1)
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(rounds):
            for way, url in urls.items():
                turns[way].append(turn(stack, way, url, seconds))
                last = turns[way][-1]
                figures = f"{last['rate']:6.0f}/s {last['cpu']:4.0f} µs"
                say(f"round {number + 1}/{rounds}  {figures}  {service}, {way}")
        results[service] = summary(turns)
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.edge", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round; writes nothing to results/")
    options = parser.parse_args()
    for program in ("wrk", "docker"):
        if not shutil.which(program):
            sys.exit(f"{program} not found")
    with tempfile.TemporaryDirectory() as directory:
        stack = Stack(Path(directory) / "bench.yml")
        try:
            results = measure(stack, *((1, 1) if options.quick else (ROUNDS, SECONDS)))
        finally:
            stack.compose("down", "--volumes", "--rmi", "all")
    print(report.edge_table({"edge": {"services": results}}))
    if not options.quick:
        save("edge", results)


if __name__ == "__main__":
    main()
