"""`make status`: the state of every service on one screen.

    python3 deploy/status.py

It asks the engine and, inside each container, the server's own metrics; it needs neither Prometheus nor
Grafana. Without an engine it asks the servers of process mode. Python 3.9 or newer is enough.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# Seconds between the two readings from which the rates are computed.
INTERVAL = 3
# Prints the answers of the server and of its exporter, inside the container. The servers have a PORT.
ASK = """
import os, urllib.error, urllib.request
ports = os.environ.get("PORT"), os.environ.get("METRICS_PORT") or 9000
for port, path in zip(ports, ("readyz", "metrics")):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            print(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        print(error.code)
    except OSError as error:
        print(0, error)
    except ValueError:
        print("no server")
"""
SERIES = re.compile(r"^([a-zA-Z_:]\w*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:\\.|[^"\\])*)"')
# The histograms of the servers and of the edge, and their labels for the status.
DURATIONS = {
    "http_server_request_duration_seconds": "http_response_status_code",
    "caddy_http_request_duration_seconds": "code",
}
# Caddy counts a request once for each part of its configuration; these have each request once.
HANDLERS = ("", "subroute", "reverse_proxy")
HEADINGS = ("SERVICE", "REPLICAS", "VERSION", "READY", "REQ/S", "P99", "ERRORS", "MEMORY", "RESTARTS")
OFF = """
REQ/S, P99 and ERRORS come from the metrics of the servers, which are off: write {setting}
in .env, then run {command}. docs/metrics.md has more."""


class Reading(NamedTuple):
    """What one replica says: whether it is ready, and its requests so far."""

    ready: bool
    measured: bool
    # Requests by status, and by upper bound of their duration.
    statuses: dict[str, float]
    buckets: dict[float, float]
    memory: float


class Row(NamedTuple):
    """What is known of a service without its metrics."""

    service: str
    replicas: int
    version: str
    memory: str
    restarts: str


def parse(text: str, ready: bool) -> Reading:
    """The series that the screen needs, out of Prometheus' text format."""
    statuses: dict[str, float] = defaultdict(float)
    buckets: dict[float, float] = defaultdict(float)
    memory = 0.0
    for name, labels, value in SERIES.findall(text):
        family, _, kind = name.rpartition("_")
        if family in DURATIONS and kind in ("count", "bucket"):
            found = dict(LABEL.findall(labels))
            if found.get("handler", "") not in HANDLERS:
                continue
            if kind == "count":
                statuses[found.get(DURATIONS[family], "")] += float(value)
            else:
                buckets[float(found["le"])] += float(value)
        elif name == "server_worker_memory_bytes":
            memory += float(value)
    measured = "http_request_duration_seconds" in text or "server_workers" in text
    return Reading(ready, measured, dict(statuses), dict(buckets), memory)


def added(before: list[Reading], after: list[Reading], field: str) -> dict[Any, float]:
    """By how much the counters of all replicas grew; a replica that is new or restarted began at 0."""
    total: dict[Any, float] = defaultdict(float)
    for index, reading in enumerate(after):
        old = getattr(before[index], field) if index < len(before) else {}
        for key, value in getattr(reading, field).items():
            total[key] += value - old.get(key, 0) if value >= old.get(key, 0) else value
    return total


def quantile(share: float, buckets: dict[float, float]) -> float | None:
    """The duration that this share of the requests stays below, as histogram_quantile computes it."""
    bounds = sorted(buckets)
    wanted = share * buckets[bounds[-1]] if bounds else 0
    below, lower = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted > 0:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        below, lower = count, bound
    return None


def cells(row: Row, before: list[Reading], after: list[Reading], seconds: float) -> tuple[str, ...]:
    """One line of the screen."""
    ready = f"{sum(reading.ready for reading in after)}/{row.replicas}"
    if not any(reading.measured for reading in after):
        return (row.service, str(row.replicas), row.version, ready, "-", "-", "-", row.memory, row.restarts)
    statuses = added(before, after, "statuses")
    total = sum(statuses.values())
    failed = sum(count for status, count in statuses.items() if status.startswith("5"))
    slow = quantile(0.99, added(before, after, "buckets"))
    return (
        row.service,
        str(row.replicas),
        row.version,
        ready,
        f"{total / seconds:.1f}",
        f"{slow:.3f} s" if slow is not None else "-",
        f"{100 * failed / total:.1f}%" if total else "-",
        row.memory or f"{sum(reading.memory for reading in after) / 1024**2:.0f} MiB",
        row.restarts,
    )


def table(rows: list[tuple[str, ...]]) -> str:
    """The rows below the headings, in columns."""
    lines = [HEADINGS, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(line[column].ljust(width) for column, width in enumerate(widths)).rstrip() for line in lines
    )


# Containers


def docker(*arguments: str) -> str:
    """The output of a docker command; "" if it fails, or if there is no such program."""
    try:
        found = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout if not found.returncode else ""


def ask_container(container: dict[str, Any]) -> Reading:
    """What one container says."""
    name, service = container["Name"], container["Service"]
    if service == "edge":
        text = docker("exec", name, "wget", "-q", "-Y", "off", "-O", "-", "http://127.0.0.1:9000/metrics")
        return parse(text, container.get("Health") == "healthy")
    first, _, rest = docker("exec", name, "python", "-IS", "-c", ASK).partition("\n")
    if first in ("", "no server"):
        return parse("", container.get("Health") in ("healthy", ""))
    return parse(rest, first.startswith("200"))


def containers() -> list[tuple[Row, list[Any]]]:
    """The services that run in containers, each with its containers."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    listed = [json.loads(line) for line in docker("compose", "ps", "--format", "json").splitlines()]
    for container in sorted(listed, key=lambda it: str(it["Name"])):
        found[container["Service"]].append(container)
    names = [container["Name"] for container in listed]
    memory = usage(names)
    restarts = dict(
        line.lstrip("/").split()
        for line in docker("inspect", "--format", "{{.Name}} {{.RestartCount}}", *names).splitlines()
    )
    result = []
    for service, replicas in sorted(found.items()):
        own = [it["Name"] for it in replicas]
        row = Row(
            service,
            len(replicas),
            "/".join(sorted({it["Image"].rpartition(":")[2] for it in replicas})),
            " ".join(memory.get(name, "-") for name in own),
            str(sum(int(restarts.get(name, 0)) for name in own)),
        )
        result.append((row, replicas))
    return result


def usage(names: list[str]) -> dict[str, str]:
    """The memory of each container, and its limit."""
    form = "{{.Name}}\t{{.MemUsage}}"
    lines = docker("stats", "--no-stream", "--format", form, *names).splitlines() if names else []
    return {name: used.replace(" ", "") for name, used in (line.split("\t") for line in lines)}


# Process mode


def get(url: str) -> tuple[int, str]:
    """The status and the body; (0, "") without an answer."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def ask_process(ports: tuple[str, str]) -> Reading:
    """What the server on these ports says: its own, and that of its metrics."""
    status, _ = get(f"http://127.0.0.1:{ports[0]}/readyz")
    return parse(get(f"http://127.0.0.1:{ports[1]}/metrics")[1], status == 200)


def processes(root: Path) -> list[tuple[Row, list[Any]]]:
    """The services of process mode, each with its ports."""
    from deploy.process import environment
    from deploy.process.servers import SERVICES

    log = root / ".run/supervisord.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    result = []
    for service in SERVICES:
        variables = environment.of_service(root, service)
        ended = len(re.findall(rf"exited: {service} \(.*not expected\)", text))
        ports: list[Any] = [(variables["PORT"], variables.get("METRICS_PORT", "9000"))]
        result.append((Row(service, 1, "-", "", str(ended)), ports))
    return result


def main() -> None:
    """The command line."""
    root = Path(__file__).resolve().parents[1]
    os.chdir(root)
    sys.path.insert(0, str(root))
    in_processes = (root / ".run/supervisor.sock").exists()
    services = processes(root) if in_processes else containers()
    if not services:
        sys.exit("nothing runs; make up starts it")
    ask = ask_process if in_processes else ask_container
    with ThreadPoolExecutor(8) as pool:

        def read() -> list[list[Reading]]:
            """What all replicas say now."""
            answers = [pool.map(ask, replicas) for _, replicas in services]
            return [list(answer) for answer in answers]

        before, started = read(), time.monotonic()
        time.sleep(INTERVAL)
        after, seconds = read(), time.monotonic() - started
    rows = [cells(row, before[number], after[number], seconds) for number, (row, _) in enumerate(services)]
    print(table(rows))
    if any(reading.measured for readings in after for reading in readings):
        print(f"\nREQ/S, P99 and ERRORS are those of the last {seconds:.0f} seconds.")
    elif in_processes:
        print(OFF.format(setting="METRICS=on", command="make down and make up"))
    else:
        print(OFF.format(setting="COMPOSE_PROFILES=metrics", command="make up"))


if __name__ == "__main__":
    main()
