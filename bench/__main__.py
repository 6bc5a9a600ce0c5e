"""`make bench`: requests per second, 99th percentile, memory and errors of every mode.

The modes take turns over several rounds, so that a slow minute of the machine hits all of
them; medians count, and the ratios between them, never a single figure.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.modes import MODES, ROOT, Mode
from bench.report import draw, table

RESULTS = Path(__file__).parent / "results"
CONNECTIONS = 64
PACKAGES = ("django", "fastapi", "flask", "granian", "gunicorn", "httptools", "uvicorn", "uvloop")
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def load(url: str, seconds: float) -> dict[str, float]:
    """Drive `url` with wrk; requests per second, 99th percentile in ms, and errors of every kind."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "--latency", url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate = re.search(r"Requests/sec: +([\d.]+)", output)
    p99 = re.search(r"99% +([\d.]+)(us|ms|s)", output)
    if rate is None or p99 is None:
        raise RuntimeError(f"wrk said:\n{output}")
    refused = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", output)
    milliseconds = float(p99[1]) * UNITS[p99[2]]
    return {"rate": float(rate[1]), "p99": milliseconds, "errors": sum(int(count) for count in refused)}


def measure(mode: Mode, seconds: int) -> dict[str, float]:
    """One turn of one mode: start, warm up, load, weigh, stop."""
    with mode.running() as server:
        load(server.url + "/", 1)
        figures = load(server.url + "/", seconds)
        return figures | {"memory": server.memory() / 1024**2, "processes": len(server.tree())}


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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round; writes nothing to results/")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the modes whose name matches")
    options = parser.parse_args()
    rounds, seconds = (1, 2) if options.quick else (3, 5)
    modes = [mode for mode in MODES if re.search(options.only, mode.name)]
    for mode in [mode for mode in modes if mode.missing]:
        print(f"left out: {mode.name}: {mode.missing} is not installed for this Python", file=sys.stderr)
        modes.remove(mode)
    turns: dict[str, list[dict[str, float]]] = {mode.name: [] for mode in modes}
    with tempfile.TemporaryDirectory() as data:
        os.environ["DATA_DIR"] = data
        os.environ["DJANGO_SECRET_KEY"] = "of a measurement"
        for command in (["migrate", "-v0"], ["collectstatic", "--noinput", "-v0"]):
            subprocess.run([sys.executable, "-m", "wsgi_app.django_site", *command], check=True, cwd=ROOT)
        for turn in range(rounds):
            for number, mode in enumerate(modes, 1):
                figures = measure(mode, seconds)
                turns[mode.name].append(figures)
                progress = f"round {turn + 1}/{rounds}, {number}/{len(modes)}"
                print(f"{progress}  {figures['rate']:8.0f}/s  {mode.name}", file=sys.stderr, flush=True)
    results = {"machine": machine(), "modes": [summary(mode, turns[mode.name]) for mode in modes]}
    print(table(results))
    directory = Path(tempfile.mkdtemp(prefix="bench-")) if options.quick or options.only else RESULTS
    directory.mkdir(exist_ok=True)
    (directory / "modes.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / "modes.svg").write_text(draw(results))
    print(f"\nwritten: {directory}/modes.json, {directory}/modes.svg")


if __name__ == "__main__":
    main()
