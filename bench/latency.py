"""`make bench PART=latency`: how long requests take at rates that users have, not at saturation.

Requests start at a constant rate, whether or not earlier ones have been answered. Each connection
starts one every 100 ms, and the connections begin one after another, so that the requests do not
come in bursts. A server without keep-alive gets a new connection for each request.

A rate is a share of what the same server answers at saturation, measured in the same run.
"""

import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.load import load, say
from bench.modes import MODES, Running

# Of the capacity. At SLOW_SHARE every tenth request waits for 100 ms in the application: as many are in
# flight at once as the rate of slow requests times 0.1 s, and each needs a thread or a process.
SHARES = (0.25, 0.5, 0.75)
SLOW_SHARE = 0.1
# Seconds between two requests of one connection, and milliseconds between two new connections.
INTERVAL, STAGGER = 0.1, 1
# Mode -> the application of bench/apps.py that is the same and has slow requests.
APPS = {
    "flask gthread": "flask",
    "flask gthread, stock worker": "flask",
    "gunicorn --workers 4": "flask",
    "django gthread": "django",
    "django: gunicorn --workers 4": "django",
    "fastapi uvicorn": "fastapi",
    "fastapi hybrid": "fastapi",
    "uvicorn --workers 4": "fastapi",
}
# Flags of those that are no mode of modes.toml.
FLAGS = {"flask gthread, stock worker": ("--worker-class", "gthread")}
# Servers that close the connection after each response.
CLOSING = ("gunicorn --workers 4", "django: gunicorn --workers 4")
ROUNDS, SECONDS = 4, 2.0


def at_rate(url: str, rate: float, seconds: float, *, closing: bool = False) -> list[float]:
    """The milliseconds of each answer to requests that start `rate` times a second.

    Raises RuntimeError when one fails.
    """
    with tempfile.NamedTemporaryFile() as log:
        process = begin(url, rate, seconds, closing, log.name)
        return finish(process, log.name)


def begin(url: str, rate: float, seconds: float, closing: bool, log: str) -> "subprocess.Popen[str]":
    """Start h2load, which writes one line for each answer to `log`."""
    total = max(1, round(rate * seconds))
    if closing:
        # As many connections as requests, opened at the rate.
        clients, step = total, max(1, round(rate * STAGGER / 1000))
        period, per_client = max(STAGGER, round(1000 * step / rate)), []
    else:
        clients = min(total, max(1, round(rate * INTERVAL)))
        step = max(1, round(clients * STAGGER / (INTERVAL * 1000)))
        period = max(STAGGER, round(INTERVAL * 1000 * step / clients))
        per_client = [f"--rps={rate / clients:.3f}"]
    command = ["h2load", "--h1", "--threads=1", f"--clients={clients}", f"--requests={total}"]
    command += [f"--rate={step}", f"--rate-period={period}ms", f"--log-file={log}", *per_client, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]", log: str) -> list[float]:
    """Wait for h2load and read its log."""
    output, _ = process.communicate(timeout=60)
    lines = [line.split() for line in Path(log).read_text().splitlines()]
    if process.returncode or not lines or any(status != "200" for _, status, _ in lines):
        raise RuntimeError(f"h2load failed, or an answer is not 200:\n{output}")
    return [int(microseconds) / 1000 for _, _, microseconds in lines]


def mixed(url: str, rate: float, seconds: float, *, closing: bool = False) -> list[float]:
    """The milliseconds of the fast requests while every tenth request is a slow one."""
    with tempfile.NamedTemporaryFile() as fast, tempfile.NamedTemporaryFile() as slow:
        both = (
            begin(url, rate * 0.9, seconds, closing, fast.name),
            begin(f"{url}slow", rate * 0.1, seconds, closing, slow.name),
        )
        found = finish(both[0], fast.name)
        finish(both[1], slow.name)
        return found


def percentiles(rounds: Iterable[list[float]]) -> dict[str, Any]:
    """p50 and p99 as median and range over the rounds; p99.9 of all requests together."""
    rounds = [sorted(those) for those in rounds]
    together = sorted(value for those in rounds for value in those)
    found: dict[str, Any] = {"n": len(together), "p99.9": round(at(together, 0.999), 1)}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        values = [at(those, share) for those in rounds]
        found[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        found[name] = {key: round(value, 1) for key, value in found[name].items()}
    return found


def at(ordered: list[float], share: float) -> float:
    """The value below which this share of the ordered values lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def measure(servers: Mapping[str, Running], rounds: int, seconds: float) -> dict[str, Any]:
    """Every server at every rate; the servers take turns."""
    capacity: dict[str, float] = {}
    for name, server in servers.items():
        load(server.url + "/", 1)
        capacity[name] = statistics.median(load(server.url + "/", seconds)["rate"] for _ in range(rounds))
        say(f"{name}: {capacity[name]:.0f}/s at saturation")
    turns: dict[str, dict[str, list[list[float]]]] = {name: {} for name in servers}
    for number in range(rounds):
        for share in SHARES:
            for name, server in servers.items():
                found = at_rate(server.url + "/", capacity[name] * share, seconds, closing=name in CLOSING)
                turns[name].setdefault(f"{share:.0%}", []).append(found)
        for name, server in servers.items():
            found = mixed(server.url + "/", capacity[name] * SLOW_SHARE, seconds, closing=name in CLOSING)
            turns[name].setdefault("slow", []).append(found)
        say(f"round {number + 1}/{rounds}")
    return {
        name: {"capacity": round(capacity[name]), **{key: percentiles(it) for key, it in those.items()}}
        for name, those in turns.items()
    }


def run(quick: bool) -> dict[str, Any]:
    """The figures of this part."""
    with ExitStack() as running:
        servers = {}
        for name, app in [*APPS.items()][:: 3 if quick else 1]:
            mode = next(mode for mode in MODES if mode.name == name.partition(",")[0])
            command = mode.command.replace("{app}", f"bench.apps:{app}")
            if command == mode.command:  # names no application
                command += f" bench.apps:{app}"
            # Each command with the log that it ships with, and without recycling: h2load does not
            # open a connection again that a server has closed between two requests.
            mode = replace(mode, environ=mode.environ | {"GUNICORN_CMD_ARGS": "--max-requests 0"})
            servers[name] = running.enter_context(
                replace(mode, command=command).running(*FLAGS.get(name, ()), equal=False)
            )
        return measure(servers, *((1, 1.0) if quick else (ROUNDS, SECONDS)))
