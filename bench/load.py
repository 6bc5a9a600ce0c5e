"""What every part of the benchmark uses: the load, the machine, and what is printed meanwhile."""

import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONNECTIONS = 64
PACKAGES = ("django", "fastapi", "flask", "granian", "gunicorn", "httptools", "uvicorn", "uvloop")
# Seconds after each load: a worker that is still busy with what wrk has left behind would get no
# connections of the next one.
PAUSE = 0.5
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def load(url: str, seconds: float, *options: str) -> dict[str, float]:
    """Drive `url` with wrk; requests per second, 99th percentile in ms, and errors of every kind."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "--timeout", "10s", "--latency"]
    command += [*options, url]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    time.sleep(PAUSE)
    output = process.stdout + process.stderr
    rate = re.search(r"Requests/sec: +([\d.]+)", output)
    p99 = re.search(r"99% +([\d.]+)(us|ms|s)", output)
    if rate is None or p99 is None:
        raise RuntimeError(f"unexpected output of wrk:\n{output}")
    refused = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", output)
    milliseconds = float(p99[1]) * UNITS[p99[2]]
    return {"rate": float(rate[1]), "p99": milliseconds, "errors": sum(int(count) for count in refused)}


def machine() -> dict[str, Any]:
    """Where and with what the figures were made."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*: (.*)", info)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": model[1].strip() if model else platform.processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version() + (" in a container" if Path("/.dockerenv").exists() else ""),
        "packages": {name: version(name) for name in PACKAGES},
        "load": f"wrk, one thread, {CONNECTIONS} connections, on the same machine",
    }


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median and quartiles: a few turns are disturbed by other programs."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return {"median": round(median, digits), "low": round(low, digits), "high": round(high, digits)}
