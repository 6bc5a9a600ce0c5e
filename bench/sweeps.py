"""`make bench PART=workers`, `front`, `memory`: speed, latency and memory by number of workers."""

import os
import statistics
import tempfile
from dataclasses import replace
from typing import Any

from bench.apps import PAGES
from bench.ceiling import ceiling
from bench.latency import at, at_rate
from bench.load import load, say, spread
from bench.modes import MODES, ROOT, Mode

# Formula -> workers, for n CPUs.
CPUS = os.cpu_count() or 1
FORMULAS = {"n": CPUS, "n+1": CPUS + 1, "2n": 2 * CPUS, "2n+1": 2 * CPUS + 1, "4n+1": 4 * CPUS + 1}
THREADS = (3, 6, 12, 18)
ROUNDS, SECONDS = 3, 1.0
# Of the front: what each application is compared with, its threads, and formulas, rounds and seconds.
COPIED = {"flask": "gunicorn --workers 4", "django": "django: gunicorn --workers 4"}
FRONT_THREADS = {"flask": (1, 2, 3, 4, 6, 12), "django": (1, 3, 6, 9)}
FRONT_FORMULAS, FRONT_ROUNDS, FRONT_SECONDS = ("n", "n+1", "2n"), 3, 2.0
WORKERS_TO_WEIGH = (1, 2, 4, 8)

# Setting -> what is appended to gunicorn.conf.py to get it.
MEMORY = {
    "preload and freeze": "",
    "preload": "def when_ready(server): pass",
    "neither": "preload_app = False",
}


def mode_with(name: str, workers: int) -> Mode:
    """The mode of that name with a fixed number of workers."""
    mode = next(mode for mode in MODES if mode.name == name)
    return replace(mode, environ=mode.environ | {"WEB_CONCURRENCY": str(workers)})


def run(quick: bool) -> list[dict[str, Any]]:
    """Requests per second by threads (0: an event loop), workers and page; each round starts all again."""
    rounds, formulas, sizes = (1, ["n", "2n+1"], [6, 0]) if quick else (ROUNDS, [*FORMULAS], [*THREADS, 0])
    rates: dict[tuple[int, str, str], list[float]] = {}
    memory: dict[tuple[int, str], list[float]] = {}
    for number in range(rounds):
        for threads in sizes:
            for formula in formulas:
                name = "gthread without a framework" if threads else "uvicorn without a framework"
                flags = ("--threads", str(threads)) if threads else ()
                with mode_with(name, FORMULAS[formula]).running(*flags) as running:
                    for page in PAGES:
                        rate = load(running.url + page, SECONDS)["rate"]
                        rates.setdefault((threads, formula, page), []).append(rate)
                    memory.setdefault((threads, formula), []).append(running.memory() / 1024**2)
            say(f"round {number + 1}/{rounds}, " + (f"{threads} threads" if threads else "event loop"))
    return [
        {
            "threads": threads,
            "formula": formula,
            "workers": FORMULAS[formula],
            "memory": round(statistics.median(memory[threads, formula]), 1),
            **{page: spread(rates[threads, formula, page], 0) for page in PAGES},
        }
        for threads, formula in memory
    ]


def run_front(quick: bool) -> list[dict[str, Any]]:
    """An application's page by threads and workers; first the command that guides print, and no server.

    Requests per second and p99 at saturation, and p99 when all of them get the same constant rate:
    half of what that command answers at saturation. Each round starts all again.
    """
    rounds, apps = (1, {"flask": (6,)}) if quick else (FRONT_ROUNDS, FRONT_THREADS)
    return [row for app, sizes in apps.items() for row in front_of(app, sizes, rounds)]


def front_of(app: str, sizes: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """The rows of one application."""
    cases = [(0, "", mode_with(COPIED[app], 4))]
    cases += [
        (size, formula, mode_with(f"{app} gthread", FORMULAS[formula]))
        for size in sizes
        for formula in FRONT_FORMULAS
    ]
    found: dict[str, list[dict[str, float]]] = {f"{size} {formula}": [] for size, formula, _ in cases}
    alone: list[float] = []
    rate = 0.0
    for number in range(rounds):
        alone.append(ceiling(app, CPUS, FRONT_SECONDS))
        for size, formula, mode in cases:
            # h2load does not open a connection again that a recycled worker has closed.
            flags = ("--threads", str(size), "--max-requests", "0") if size else ()
            with mode.running(*flags, equal=bool(size)) as running:
                load(running.url + "/", 1)
                figures = load(running.url + "/", FRONT_SECONDS)
                rate = rate or figures["rate"] / 2
                waits = sorted(at_rate(running.url + "/", rate, FRONT_SECONDS, closing=not size))
            found[f"{size} {formula}"].append(figures | {"constant": at(waits, 0.99)})
        say(f"{app}, round {number + 1}/{rounds}")
    rows: list[dict[str, Any]] = [
        {
            "app": app,
            "threads": size,
            "formula": formula,
            "workers": FORMULAS.get(formula, 4),
            "constant_rate": round(rate),
            **{
                key: spread([turn[key] for turn in found[f"{size} {formula}"]], digits)
                for key, digits in (("rate", 0), ("p99", 1), ("constant", 1))
            },
        }
        for size, formula, _ in cases
    ]
    without = {"app": app, "threads": 0, "formula": "", "workers": CPUS, "constant_rate": round(rate)}
    return [rows[0], without | {"rate": spread(alone, 0)}, *rows[1:]]


def run_memory(quick: bool) -> list[dict[str, Any]]:
    """MiB (PSS) of Django under load by number of workers and setting."""
    found = []
    for name, line in MEMORY.items():
        for count in (1, 4) if quick else WORKERS_TO_WEIGH:
            with tempfile.NamedTemporaryFile("w", suffix=".conf.py") as file:
                file.write(f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())\n{line}\n")
                file.flush()
                with mode_with("django gthread", count).running("--config", file.name) as running:
                    load(running.url + "/", 1)
                    mebibytes = round(running.memory() / 1024**2, 1)
            found.append({"setting": name, "workers": count, "memory": mebibytes})
            say(f"{name}, {count} workers: {mebibytes:.0f} MiB")
    return found
