"""An application's page in a loop, without any server: no server can answer more.

`python -m bench.ceiling APPLICATION SECONDS` prints the pages per second of one process.
"""

import subprocess
import sys
import time
from wsgiref.util import setup_testing_defaults

from gunicorn.util import import_app

from bench.modes import APPS, ROOT


def pages(application: str, seconds: float) -> float:
    """Pages per second in this process, after a second in which caches fill."""
    app = import_app(application)

    def page() -> None:
        environ: dict[str, object] = {"REMOTE_ADDR": "127.0.0.1"}
        setup_testing_defaults(environ)
        statuses: list[str] = []
        body = app(environ, lambda status, *_: statuses.append(status))
        b"".join(body)
        body.close()
        if statuses != ["200 OK"]:
            raise RuntimeError(f"{application} answered {statuses}")

    for duration in (1, seconds):
        count, began = 0, time.monotonic()
        while time.monotonic() - began < duration:
            page()
            count += 1
    return count / (time.monotonic() - began)


def ceiling(app: str, processes: int, seconds: float) -> float:
    """Pages per second of so many processes together; `app` is a name of modes.toml."""
    command = [sys.executable, "-m", "bench.ceiling", APPS[app], str(seconds)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"no pages of {app} without a server; the reason is above")
    return sum(map(float, outputs))


if __name__ == "__main__":
    print(pages(sys.argv[1], float(sys.argv[2])))
