"""`make bench`: speed, memory and errors of every mode, by number of workers, and lost requests.

The modes take turns over several rounds, so that a slow minute of the machine affects all of
them. Compare medians and the ratios between them, never single figures.
"""

import argparse
import datetime
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import guide, report, sweeps
from bench.losses import losses
from bench.modes import MODES, ROOT, Mode

CONNECTIONS = 64
PACKAGES = ("django", "fastapi", "flask", "granian", "gunicorn", "httptools", "uvicorn", "uvloop")
# A turn is repeated, twice at most, when other programs used more than this share of the CPUs.
DISTURBED, TRIES = 0.15, 3
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def load(url: str, seconds: float, *options: str) -> dict[str, float]:
    """Drive `url` with wrk; requests per second, 99th percentile in ms, and errors of every kind."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "--timeout", "10s", "--latency"]
    command += [*options, url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate = re.search(r"Requests/sec: +([\d.]+)", output)
    p99 = re.search(r"99% +([\d.]+)(us|ms|s)", output)
    if rate is None or p99 is None:
        raise RuntimeError(f"unexpected output of wrk:\n{output}")
    refused = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", output)
    milliseconds = float(p99[1]) * UNITS[p99[2]]
    return {"rate": float(rate[1]), "p99": milliseconds, "errors": sum(int(count) for count in refused)}


def save(part: str, services: dict[str, Any]) -> None:
    """Write what a part of the benchmark has found to results/, and fill the pages that show it."""
    results = {"machine": machine(), "services": services}
    (guide.RESULTS / f"{part}.json").write_text(json.dumps(results, indent=1) + "\n")
    guide.main()


def busy() -> float:
    """Seconds of CPU time that all programs, and other guests of the host, have used."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(mode: Mode, seconds: float, *, tries: int = TRIES, equal: bool = True) -> dict[str, float]:
    """One turn of one mode: start, warm up, load, measure, stop. Repeated when other programs disturb it."""
    turns = []
    for _ in range(tries):
        with mode.running(equal=equal) as server:
            if tries > 1:
                load(server.url + "/", 1)
            total, own, wrk = busy(), server.cpu(), _children()
            figures = load(server.url + "/", seconds)
            own = server.cpu() - own + _children() - wrk
            figures["foreign"] = max(0.0, (busy() - total - own) / (seconds * (os.cpu_count() or 1)))
            figures |= {"memory": server.memory() / 1024**2, "processes": len(server.tree())}
        turns.append(figures)
        if figures["foreign"] < DISTURBED:
            break
    return min(turns, key=lambda figures: figures["foreign"])


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine() -> dict[str, Any]:
    """Where and with what the figures were made."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": model[1].strip() if model else platform.processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "load": f"wrk, one thread, {CONNECTIONS} connections, on the same machine",
    }


def summary(mode: Mode, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Medians and spread over the turns; errors are added up."""
    figures: dict[str, Any] = {"name": mode.name, "app": mode.app, "kind": mode.kind, "command": mode.command}
    for name in ("rate", "p99", "memory", "processes"):
        values = [turn[name] for turn in turns]
        figures[name] = round(statistics.median(values), 1)
        figures[f"{name}_range"] = [round(min(values), 1), round(max(values), 1)]
    return figures | {"errors": sum(int(turn["errors"]) for turn in turns)}


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def in_turns(modes: list[Mode], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The summaries of all modes after `rounds` turns each; copied commands also without `equal`.

    A single round is a quick look: nothing is repeated, copied commands run once.
    """
    quick = rounds == 1
    turns: dict[str, list[dict[str, float]]] = {mode.name: [] for mode in modes}
    verbatim: dict[str, list[float]] = {mode.name: [] for mode in modes if mode.equal}
    for turn in range(rounds):
        for number, mode in enumerate(modes, 1):
            turns[mode.name].append(measure(mode, seconds, tries=1 if quick else TRIES))
            if mode.equal and not quick:
                verbatim[mode.name].append(measure(mode, seconds, equal=False)["rate"])
            progress = f"round {turn + 1}/{rounds}, {number}/{len(modes)}"
            last = turns[mode.name][-1]
            noise = f"  (other programs used {last['foreign']:.0%})" if last["foreign"] >= DISTURBED else ""
            say(f"{progress}  {last['rate']:8.0f}/s  {mode.name}{noise}")
    summaries = [summary(mode, turns[mode.name]) for mode in modes]
    for figures in summaries:
        if rates := verbatim.get(figures["name"]):
            figures["verbatim_rate"] = round(statistics.median(rates), 1)
    return summaries


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round; writes nothing to results/")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the modes whose name matches")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk not found: apt install wrk, or brew install wrk")
    modes = [mode for mode in MODES if re.search(options.only, mode.name)]
    for mode in [mode for mode in modes if mode.missing]:
        say(f"left out: {mode.name}: {mode.missing} is not installed for this Python")
        modes.remove(mode)
    partial = options.quick or options.only
    with tempfile.TemporaryDirectory() as data:
        os.environ["DATA_DIR"] = data
        os.environ["DJANGO_SECRET_KEY"] = "of a measurement"
        for command in (["migrate", "-v0"], ["collectstatic", "--noinput", "-v0"]):
            subprocess.run([sys.executable, "-m", "wsgi_app.django_site", *command], check=True, cwd=ROOT)
        results = {"machine": machine(), "modes": in_turns(modes, *((1, 1) if partial else (3, 3)))}
        counts = sweeps.QUICK if partial else sweeps.WORKERS
        results["workers"] = sweeps.throughput(load, 1 if partial else 2, counts, say)
        results["memory"] = sweeps.memory(load, (1, 4) if partial else sweeps.WORKERS_TO_WEIGH, say)
        results["losses"] = {}
        for mode in modes:
            if mode.recycle and (mode.kind == "recommended" or not partial):
                results["losses"][mode.name] = losses(mode)
                lost = {event: figures["lost"] for event, figures in results["losses"][mode.name].items()}
                say(f"{mode.name}, requests lost: {lost}")
    print(report.table(results))
    directory = Path(tempfile.mkdtemp(prefix="bench-")) if partial else guide.RESULTS
    directory.mkdir(exist_ok=True)
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if not partial:
        return guide.main()
    for name, picture in report.pictures(results).items():
        (directory / name).write_text(picture)
    print(f"\nwritten: {directory}/results.json and the pictures")


if __name__ == "__main__":
    main()
