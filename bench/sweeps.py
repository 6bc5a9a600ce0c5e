"""Throughput and memory by number of workers."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench.apps import PAGES
from bench.modes import MODES, ROOT, Mode

WORKERS = (1, 2, 3, 4, 5, 6, 9, 12)
QUICK = (1, 3)
WORKERS_TO_WEIGH = (1, 2, 4, 8)
SERVERS = {"gthread": "gthread without a framework", "uvicorn": "uvicorn without a framework"}

# Setting -> what is appended to gunicorn.conf.py to get it.
MEMORY = {
    "preload and freeze": "",
    "preload": "def when_ready(server): pass",
    "neither": "preload_app = False",
}

Load = Callable[[str, float], dict[str, float]]


def mode_with(name: str, workers: int) -> Mode:
    """The mode of that name with a fixed number of workers."""
    mode = next(mode for mode in MODES if mode.name == name)
    return replace(mode, environ=mode.environ | {"WEB_CONCURRENCY": str(workers)})


def throughput(
    load: Load, seconds: float, counts: Sequence[int], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Requests per second by server, page and number of workers."""
    found = []
    for count in counts:
        for server, name in SERVERS.items():
            with mode_with(name, count).running() as running:
                rates = {page: round(load(running.url + page, seconds)["rate"], 1) for page in PAGES}
            found.append({"server": server, "workers": count, **rates})
            say(
                f"{server}, {count} workers: "
                + ", ".join(f"{page} {rate:.0f}/s" for page, rate in rates.items())
            )
    return found


def memory(load: Load, counts: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """MiB (PSS) of Django under load by number of workers and setting."""
    found = []
    for name, line in MEMORY.items():
        for count in counts:
            with tempfile.NamedTemporaryFile("w", suffix=".conf.py") as file:
                file.write(f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())\n{line}\n")
                file.flush()
                with mode_with("django gthread", count).running("--config", file.name) as running:
                    load(running.url + "/", 1)
                    mebibytes = round(running.memory() / 1024**2, 1)
            found.append({"setting": name, "workers": count, "memory": mebibytes})
            say(f"{name}, {count} workers: {mebibytes:.0f} MiB")
    return found
