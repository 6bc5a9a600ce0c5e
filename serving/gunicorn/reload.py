"""Gunicorn's `--reload` without its gaps (27.0, gunicorn/reloader.py and workers/base.py).

- It sees an edit that is made while the application loads; the stock one looks only afterwards.
- It waits for an edit when the application cannot be loaded; the stock one only after a syntax error.
- It ends an asyncio worker as well; the stock one leaves that with the old code.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import gunicorn.reloader
import gunicorn.workers.base
from gunicorn.arbiter import Arbiter

from serving import logs
from serving.gunicorn import internals

# Seconds between two looks at all files.
INTERVAL = 0.25

internals.require(gunicorn.reloader.Reloader, "get_files", "run")
internals.require(gunicorn.workers.base.Worker, "load_wsgi", "notify")


class Reloader(gunicorn.reloader.Reloader):  # type: ignore[misc]  # Gunicorn has no types
    """A reloader that knows the times of the files from before the application was loaded."""

    def __init__(self, extra_files: Iterable[str], callback: Callable[[str], None]):
        super().__init__(extra_files=extra_files, callback=callback)
        self.times: dict[str, float] = {}
        self.edited()

    def edited(self) -> str:
        """The first file that is newer than at the first look; "" when there is none."""
        for file in self.get_files():
            with suppress(OSError):
                modified = os.stat(file).st_mtime  # noqa: PTH116  a thousand times per look
                if modified > self.times.setdefault(file, modified):
                    return str(file)
        return ""

    def run(self) -> None:
        """Stop the worker at the first edit."""
        while not (file := self.edited()):
            time.sleep(INTERVAL)
        try:
            self._callback(file)  # marks the worker as ending, and ends this thread
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # the only thing that an asyncio worker looks at


class Reloadable:
    """To be mixed into a worker class of Gunicorn's."""

    alive: bool
    app: Any
    cfg: Any
    log: Any
    notify: Callable[[], None]
    reloader: Any

    def load_wsgi(self) -> None:
        """Load the application; under `--reload`, when that fails, wait for an edit and end."""
        if self.reloader is None:
            with logs.uncaught(Arbiter.WORKER_BOOT_ERROR):
                super().load_wsgi()  # type: ignore[misc]  # the worker class's
            return
        internals.require(self.reloader, "_callback")
        self.reloader = Reloader(self.cfg.reload_extra_files, self.reloader._callback)
        try:
            self.wsgi = self.app.wsgi()
        except Exception:
            self.log.exception("The application cannot be loaded; waiting for an edit")
            while self.alive and not self.reloader.edited():
                self.notify()
                time.sleep(INTERVAL)
            sys.exit(0)
