"""Liveness, readiness, the drain flag, and the probe that asks for them.

`python -m serving.health [--wait SECONDS] [URL ...]` exits 0 when every URL answers below
400. Without a URL it asks this container's own /readyz. With --drain it sets the flag, and
returns when a proxy has seen it: the server can be stopped now.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from tempfile import gettempdir
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from serving import settings

LIVE, READY = "/livez", "/readyz"
PATHS = (LIVE, READY)

# Seconds; compose gives up on a probe after its own, longer timeout.
PROBE_TIMEOUT = 4

# Seconds in which a proxy surely asks again; ours asks twice a second.
NOTICED = 2

logger = logging.getLogger(__name__)


def drain_file() -> Path:
    """While this file exists /readyz answers 503, so that a proxy stops sending requests."""
    return Path(settings.text("DRAIN_FILE", f"{gettempdir()}/draining"))


def forget_drain() -> None:
    """Remove the flag that an earlier run left behind. A server calls it when it starts."""
    drain_file().unlink(missing_ok=True)


def answer(path: str, failures: Mapping[str, Exception]) -> tuple[int, bytes]:
    """Status and JSON body of a probe; `failures` are the dependencies that did not answer.

    Names and exception types only: a message could hold an address or a password.
    """
    failed = {name: type(error).__name__ for name, error in failures.items()}
    for name, error in failures.items():
        logger.warning("not ready: %s: %s", name, error)
    if path == READY and drain_file().exists():
        failed["draining"] = "stopping"
    status = 503 if failed else 200
    return status, json.dumps({"status": "unready" if failed else "ok", "failed": failed}).encode()


def probe(url: str) -> str:
    """Ask once; "" when the answer is below 400, else what was wrong."""
    try:
        # No proxy from the environment: a probe asks its own machine.
        with build_opener(ProxyHandler({})).open(url, timeout=PROBE_TIMEOUT):
            return ""
    except HTTPError as error:
        return f"{url}: {error.code} {error.read(1000).decode(errors='replace')}"
    except (OSError, HTTPException) as error:
        return f"{url}: {getattr(error, 'reason', error)}"


def main() -> None:
    """The command line; exits with the first failure's text."""
    parser = argparse.ArgumentParser(prog="python -m serving.health", description=__doc__)
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="ask again until then")
    parser.add_argument("--drain", action="store_true", help="be unready until the server starts again")
    own = f"http://127.0.0.1:{settings.text('PORT', '8000')}{READY}"
    parser.add_argument("url", nargs="*", default=[own])
    arguments = parser.parse_args()
    if arguments.drain:
        drain_file().touch()
        # A busy server answers late, a proxy as well.
        while not any(map(probe, arguments.url)):
            time.sleep(0.2)
        return time.sleep(NOTICED)
    deadline = time.monotonic() + arguments.wait
    for url in arguments.url:
        while failure := probe(url):
            if time.monotonic() > deadline:
                sys.exit(failure)
            time.sleep(0.2)


if __name__ == "__main__":
    main()
