"""`make bench PART=modes` and `PART=losses`: speed, memory and errors of every mode, and lost requests.

The modes take turns over several rounds, so that a slow minute of the machine affects all of them.
"""

import os
import re
import resource
import statistics
from pathlib import Path
from typing import Any

from bench.load import load, say
from bench.losses import losses
from bench.modes import MODES, Mode

# A turn is repeated, twice at most, when other programs used more than this share of the CPUs.
DISTURBED, TRIES = 0.15, 3


def busy() -> float:
    """Seconds of CPU time that all programs, and other guests of the host, have used."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(mode: Mode, seconds: float, *, tries: int = TRIES, equal: bool = True) -> dict[str, float]:
    """One turn of one mode, repeated when other programs disturb it.

    A yardstick that is gone is started again: it is not ours to mend, and would end the measurement.
    """
    turns = []
    for number in range(1, tries + 1):
        try:
            turns.append(turn(mode, seconds, warm_up=tries > 1, equal=equal))
        except RuntimeError as error:
            if mode.kind != "yardstick" or number == tries:
                raise
            say(f"{mode.name} once more: {error}")
            continue
        if turns[-1]["foreign"] < DISTURBED:
            break
    return min(turns, key=lambda figures: figures["foreign"])


def turn(mode: Mode, seconds: float, *, warm_up: bool, equal: bool) -> dict[str, float]:
    """Start, warm up, load, measure, stop. Raises RuntimeError if the server does not answer."""
    with mode.running(equal=equal) as server:
        if warm_up:
            load(server.url + "/", 1)
        total, own, wrk = busy(), server.cpu(), _children()
        figures = load(server.url + "/", seconds)
        own = server.cpu() - own + _children() - wrk
        figures["foreign"] = max(0.0, (busy() - total - own) / (seconds * (os.cpu_count() or 1)))
        return figures | {"memory": server.memory() / 1024**2, "processes": len(server.tree())}


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def summary(mode: Mode, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Medians and spread over the turns; errors are added up."""
    figures: dict[str, Any] = {"name": mode.name, "app": mode.app, "kind": mode.kind, "command": mode.command}
    for name in ("rate", "p99", "memory", "processes"):
        values = [each[name] for each in turns]
        figures[name] = round(statistics.median(values), 1)
        figures[f"{name}_range"] = [round(min(values), 1), round(max(values), 1)]
    return figures | {"errors": sum(int(each["errors"]) for each in turns)}


def in_turns(modes: list[Mode], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The summaries of all modes after `rounds` turns each; copied commands also without `equal`.

    A single round is a quick look: nothing is repeated, copied commands run once.
    """
    quick = rounds == 1
    turns: dict[str, list[dict[str, float]]] = {mode.name: [] for mode in modes}
    verbatim: dict[str, list[float]] = {mode.name: [] for mode in modes if mode.equal}
    for done in range(rounds):
        for number, mode in enumerate(modes, 1):
            turns[mode.name].append(measure(mode, seconds, tries=1 if quick else TRIES))
            if mode.equal and not quick:
                verbatim[mode.name].append(measure(mode, seconds, equal=False)["rate"])
            progress = f"round {done + 1}/{rounds}, {number}/{len(modes)}"
            last = turns[mode.name][-1]
            noise = f"  (other programs used {last['foreign']:.0%})" if last["foreign"] >= DISTURBED else ""
            say(f"{progress}  {last['rate']:8.0f}/s  {mode.name}{noise}")
    summaries = [summary(mode, turns[mode.name]) for mode in modes]
    for figures in summaries:
        if rates := verbatim.get(figures["name"]):
            figures["verbatim_rate"] = round(statistics.median(rates), 1)
    return summaries


def chosen(only: str) -> list[Mode]:
    """The modes whose name matches, without those that need a module that is not installed."""
    modes = [mode for mode in MODES if re.search(only, mode.name)]
    for mode in [mode for mode in modes if mode.missing]:
        say(f"left out: {mode.name}: {mode.missing} is not installed for this Python")
        modes.remove(mode)
    return modes


def run(quick: bool, only: str = "") -> list[dict[str, Any]]:
    """The figures of this part."""
    return in_turns(chosen(only), *((1, 1) if quick else (3, 3)))


def run_losses(quick: bool, only: str = "") -> dict[str, Any]:
    """The requests that each mode loses; quickly, only those of the recommended ones."""
    found = {}
    for mode in chosen(only):
        if mode.recycle and (mode.kind == "recommended" or not quick):
            found[mode.name] = losses(mode)
            lost = {event: figures["lost"] for event, figures in found[mode.name].items()}
            say(f"{mode.name}, requests lost: {lost}")
    return found
