"""The parent process: the directory of the workers' files, their slots, and the exporter."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from serving import metrics, settings

# Seconds until an exporter that has ended is started again.
PAUSE = 5


def port() -> int:
    """METRICS_PORT, on which the exporter listens."""
    return settings.integer("METRICS_PORT", 9000, minimum=1, maximum=65535)


def host() -> str:
    """The address on which the exporter listens: the server's own."""
    return settings.text("HOST", "127.0.0.1")


def require_free_port() -> None:
    """Raise SettingError unless an exporter can listen."""
    try:
        settings.require_free(host(), port())
    except settings.SettingError as error:
        raise settings.SettingError(str(error).replace("HOST and PORT", "HOST and METRICS_PORT")) from None


def start(own_slot: str = "") -> "Parent | None":
    """A Parent, or None with METRICS=off."""
    if not metrics.enabled():
        return None
    return Parent(own_slot)


class Parent:
    """Made before the application is loaded, so that its own metrics are exported, too."""

    def __init__(self, own_slot: str = "") -> None:
        """`own_slot` is for a parent process that serves requests itself."""
        metrics.require_package()
        port()
        # In memory, where no upload can fill the disk: writing to a file without space would end a worker.
        place = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112, S108
        try:
            self.directory = tempfile.mkdtemp(prefix="metrics-", dir=place)
        except OSError as error:
            settings.refuse("METRICS", "on", f"off, because no directory can be made: {error}")
        self.owner = os.getpid()
        atexit.register(self.stop)
        os.environ[metrics.DIRECTORY] = self.directory
        os.environ.pop(metrics.SLOT, None)
        if own_slot:
            os.environ[metrics.SLOT] = own_slot
        loaded = metrics.load()
        assert loaded  # noqa: S101  METRICS is on
        self.instruments: ModuleType = loaded
        # A series that begins with its first event hides that event: a rate needs two values.
        for cause in ("exit", "recycled", "timeout", "SIGKILL"):
            self.instruments.exits.labels(cause)
        self.taken: set[str] = set()
        self.exporter: subprocess.Popen[bytes] | None = None
        self.started = float("-inf")
        self.addresses: list[str] = []

    def take_slot(self) -> str:
        """The lowest free slot, for a worker that starts now."""
        slot = next(slot for slot in map(str, range(len(self.taken) + 1)) if slot not in self.taken)
        self.taken.add(slot)
        return slot

    def free_slot(self, slot: str, cause: str) -> None:
        """Count a worker that has ended, and remove what it showed of itself. Its counters stay."""
        from prometheus_client.multiprocess import mark_process_dead

        self.taken.discard(slot)
        self.instruments.exits.labels(cause).inc()
        mark_process_dead(slot, self.directory)

    def start_exporter(self, sockets: Iterable[Any]) -> None:
        """Start the exporter for the server that listens on these sockets."""
        addresses = [socket.getsockname() for socket in sockets]
        self.addresses = [f"{address[0]}:{address[1]}" for address in addresses if isinstance(address, tuple)]
        if any(address.endswith(f":{port()}") for address in self.addresses):
            settings.refuse("METRICS_PORT", port(), "another port than that of the server")
        # The server that this one replaces after SIGUSR2 has the port until it ends.
        if "GUNICORN_PID" not in os.environ:
            require_free_port()
        self.keep_exporter()

    def keep_exporter(self) -> None:
        """Start the exporter again if it has ended. Called about once a second."""
        if self.exporter is not None and self.exporter.poll() is None:
            return
        if time.monotonic() - self.started < PAUSE:
            return
        self.started = time.monotonic()
        command = [sys.executable, "-m", "serving.metrics", self.directory, str(os.getpid()), *self.addresses]
        self.exporter = subprocess.Popen(  # noqa: S603  no shell
            command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL
        )

    def stop(self) -> None:
        """End the exporter with this process, not with a worker that was forked from it."""
        if os.getpid() != self.owner:
            return
        if self.exporter is not None:
            self.exporter.kill()
            self.exporter.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def cause_of(status: int | None) -> str:
    """The cause of an exit with this code; a negative one is that of a signal, None is not known."""
    if status is None:
        return "unknown"
    try:
        return "exit" if status >= 0 else signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
