"""`make bench PART=metrics`: what METRICS=on costs, next to the same server without.

Both servers run all the time and take turns at being loaded. Each request has the header from which
the time in the queue follows, as behind the edge.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from bench.load import load, say, spread
from bench.modes import MODES, Running, free_port

# Many short turns, because a slow moment of the machine then affects both alike.
ROUNDS, SECONDS = 15, 2
SERVERS = {"flask": "flask gthread", "fastapi": "fastapi uvicorn", "fastapi-hybrid": "fastapi hybrid"}


def turn(server: Running, seconds: float) -> dict[str, float]:
    """One turn of one server: requests per second, and CPU time of its processes for each request."""
    cpu = server.cpu()
    figures = load(server.url + "/", seconds, "-H", f"X-Request-Start: {time.time() * 1000:.0f}")
    return figures | {"cpu": (server.cpu() - cpu) * 1e6 / (figures["rate"] * seconds)}


def compare(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """The medians and the ranges of both servers, and those of their ratios, turn by turn."""
    mode = next(mode for mode in MODES if mode.name == SERVERS[name])
    environ = mode.environ | {"METRICS_PORT": str(free_port())}
    turns: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    with ExitStack() as running:
        servers = {
            state: running.enter_context(replace(mode, environ=environ | {"METRICS": state}).running())
            for state in turns
        }
        for server in servers.values():
            load(server.url + "/", 1)
        for number in range(rounds):
            # Each is first in every other round.
            for state in list(servers)[:: 1 if number % 2 else -1]:
                turns[state].append(turn(servers[state], seconds))
                last = turns[state][-1]
                figures = f"{last['rate']:6.0f}/s {last['cpu']:4.0f} µs"
                say(f"round {number + 1}/{rounds}  {figures}  {name}, metrics {state}")
        memory = {state: server.memory() / 1024**2 for state, server in servers.items()}
    pairs = list(zip(turns["on"], turns["off"], strict=True))
    found: dict[str, Any] = {"errors": sum(int(it["errors"]) for it in turns["on"] + turns["off"])}
    for figure in ("rate", "cpu"):
        found[f"{figure}_ratio"] = spread([on[figure] / off[figure] for on, off in pairs])
        for state, those in turns.items():
            found[f"{figure}_{state}"] = spread([it[figure] for it in those])
    return found | {"memory": round(memory["on"] - memory["off"], 1)}


def run(quick: bool) -> dict[str, Any]:
    """The figures of this part."""
    rounds, seconds = (1, 1) if quick else (ROUNDS, SECONDS)
    return {name: compare(name, rounds, seconds) for name in SERVERS}
