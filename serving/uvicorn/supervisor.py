"""Uvicorn's server and parent process without their gaps (Uvicorn 0.54; see docs/patches.md).

- SIGTERM drains: /readyz answers 503 and requests are served for DRAIN_SECONDS, before the stop.
- A server whose workers cannot start exits with 3; the stock parent process exits with 0.
- A replacement that cannot start does not end the other workers; it is started again after a pause.
- A worker whose event loop is blocked is replaced; in the stock worker a thread answers the check.
- The check of a worker never waits; the stock one delays signals while a worker is silent.
- A single process, which has no parent process, ends when its event loop is blocked.
- The reloader notices edits during the application's import; the stock one looks only afterwards.
- A process that has no file descriptor left logs that.
"""

import asyncio
import faulthandler
import gc
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import socket
from types import FrameType
from typing import override

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.server import Server
from uvicorn.supervisors.multiprocess import Multiprocess, Process
from uvicorn.supervisors.statreload import StatReload

from serving import health, logs, metrics
from serving.metrics import parent
from serving.uvicorn.supported import check_attributes, check_overrides

# Seconds between two rounds of Multiprocess.run.
ROUND = 0.5

# Seconds before a worker that could not start is started again: at first, and at most.
PAUSE, LONGEST_PAUSE = 1, 30

# Seconds between two log lines about missing file descriptors.
REMINDER = 60

# What the parent process sends to a worker: DRAIN, or a ping, which is whether a worker of this server
# was ready once. The worker answers a ping with whether it serves and whether it was ready.
DRAIN = b"drain"

logger = logging.getLogger("uvicorn.error")


def require_supported_uvicorn() -> None:
    """Raise SettingError unless Uvicorn has everything that this module overrides."""
    check_overrides(ObservedServer, WatchedProcess, Supervisor, StatReloader)


class FileDescriptors:
    """Logs, at most once a minute, that this process cannot open another file or connection."""

    next_line = float("-inf")

    def check(self) -> None:
        """Try to open one. The server itself does not log it: it accepts no connection, or closes it."""
        if time.monotonic() < self.next_line:
            return
        with suppress(OSError):
            os.close(os.open(os.devnull, os.O_RDONLY))
            return
        self.next_line = time.monotonic() + REMINDER
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        logger.error("All %d file descriptors are in use: raise NOFILE or add replicas", limit)


class ObservedServer(Server):
    """A server whose event loop can be asked whether it is blocked, and that drains on SIGTERM."""

    def __init__(self, config: Config, exporting: parent.Parent | None = None) -> None:
        """`exporting` is that of a process without a parent process."""
        super().__init__(config)
        self.exporting = exporting
        check_attributes(self, "config", "should_exit", "started")
        check_attributes(self.config, "loaded")
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stop_at: float | None = None  # when the drain ends
        self.descriptors = FileDescriptors()

    @override
    def run(self, sockets: list[socket] | None = None) -> None:
        """Serve; as JSON, an exception is one line also in a worker process."""
        with logs.uncaught():
            super().run(sockets)

    @override
    async def serve(self, sockets: list[socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)

    @override
    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start, then exclude the imported objects from garbage collection."""
        if instruments := metrics.load():
            instruments.begin_worker()
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        if self.is_single():
            threading.Thread(target=self.watch, args=[asyncio.get_running_loop()], daemon=True).start()

    @override
    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: stop when the drain is over."""
        if self.stop_at is not None and time.monotonic() >= self.stop_at:
            self.should_exit = True
        if counter % 10 == 0:
            self.descriptors.check()
            if self.exporting:
                self.exporting.keep_exporter()
        return await super().on_tick(counter)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first SIGTERM; stop on SIGINT and on the second SIGTERM.

        A worker process stops immediately, because its parent process has waited for the drain, and
        so does a process that is still importing the application.
        """
        if not self.config.loaded:
            os._exit(0)
        draining = self.stop_at is not None or self.should_exit
        seconds = 0 if draining or sig != signal.SIGTERM else health.drain_seconds()
        if seconds and self.started and self.is_single():
            logger.info("Received SIGTERM, draining for %d s", seconds)
            health.start_drain()
            self.stop_at = time.monotonic() + seconds
        else:
            super().handle_exit(sig, frame)

    @staticmethod
    def is_single() -> bool:
        """Whether this is the only process of the server."""
        return multiprocessing.parent_process() is None

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the process when its event loop is blocked: an engine restarts only an ended process.

        Native code that never releases the interpreter lock stops this thread as well; only the
        parent process of two or more workers notices that.
        """
        silent = 0  # rounds, not seconds: see WatchedProcess.responsive
        answered = threading.Event()
        answered.set()
        while silent * ROUND < self.config.timeout_worker_healthcheck:
            if answered.is_set():
                silent = 0
                answered.clear()
                with suppress(RuntimeError):  # the loop is closed: the process is about to end
                    loop.call_soon_threadsafe(answered.set)
            silent += 1
            time.sleep(ROUND)
        if logs.JSON:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            stack = "".join(traceback.format_stack(frame))
            logger.error("The event loop is blocked here; exiting", extra={"stack": stack})
        else:
            logger.error("The event loop is blocked here; exiting")
            faulthandler.dump_traceback()
        os._exit(1)


class WatchedProcess(Process):
    """One worker process, seen from both sides."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        check_attributes(self, "_server", "parent_conn", "child_conn", "process")
        self.ready = False  # in the parent: whether it has answered that it serves
        self.silent = 0  # in the parent: rounds since the ping that has no answer yet
        self.restart_at: float | None = None  # in the parent: when to replace this ended worker
        self.slot = ""  # in the parent: its place in the metrics
        self.cause = ""  # in the parent: why it is ended

    @property
    @override
    def server(self) -> ObservedServer:
        """In the worker: its server."""
        if not isinstance(self._server, ObservedServer):
            self._server = ObservedServer(config=self.config)
        return self._server

    @override
    def pong(self) -> None:
        """In the worker: answer one ping, through the event loop once it runs."""
        message = self.child_conn.recv()
        if message == DRAIN:
            health.start_drain()
            return
        if message:
            health.set_ready()
        if self.server.loop is not None:
            answered = threading.Event()
            with suppress(RuntimeError):  # the loop is closed: the worker is about to end
                self.server.loop.call_soon_threadsafe(answered.set)
                answered.wait()
        self.child_conn.send((self.server.started, health.was_ready()))

    def drain(self) -> None:
        """In the parent: make the worker unready."""
        with suppress(OSError):  # it has ended
            self.parent_conn.send(DRAIN)

    def responsive(self, timeout: float) -> bool:
        """In the parent, once a round: whether it runs and answered within `timeout` seconds.

        Rounds are counted, not seconds: a container that was paused must not replace its workers.
        """
        try:
            if self.silent and self.parent_conn.poll():
                self.ready, was_ready = self.parent_conn.recv()
                self.silent = 0
                if was_ready:
                    health.set_ready()
            if not self.silent:
                self.parent_conn.send(health.was_ready())
        except (OSError, EOFError):
            return False
        self.silent += 1
        return self.process.is_alive() and self.silent * ROUND < timeout


class Supervisor(Multiprocess):
    """The parent process of two or more workers."""

    processes: list[WatchedProcess]  # type: ignore[assignment]  # Uvicorn: list[Process]

    def __init__(self, config: Config, sockets: list[socket], exporting: parent.Parent | None = None) -> None:
        super().__init__(config, sockets)
        self.exporting = exporting
        check_attributes(
            self, "config", "processes", "processes_num", "should_exit", "signal_queue", "sockets"
        )
        self.stop_at: float | None = None  # when the drain ends
        self.has_served = False  # whether a worker has ever been ready
        self.failed_starts = 0  # in a row

    @override
    def run(self) -> None:
        """Serve until a signal, or until a worker fails before any was ready: SystemExit(3)."""
        super().run()
        if not self.has_served and self.failed_starts:
            sys.exit(STARTUP_FAILURE)

    def start_worker(self) -> WatchedProcess:
        """Start a worker process."""
        worker = WatchedProcess(self.config, self.sockets)
        if self.exporting:
            worker.slot = os.environ[metrics.SLOT] = self.exporting.take_slot()
        worker.start()
        if health.draining():
            worker.drain()
        return worker

    def count_exit(self, worker: WatchedProcess) -> None:
        """Free the place of a worker that has ended in the metrics."""
        if self.exporting:
            self.exporting.free_slot(worker.slot, worker.cause or parent.cause_of(worker.exitcode))

    @override
    def init_processes(self) -> None:
        self.processes += [self.start_worker() for _ in range(self.processes_num)]

    @override
    def keep_subprocess_alive(self) -> None:
        """Once a round: replace each worker that has ended or does not answer."""
        if self.stop_at is not None and time.monotonic() >= self.stop_at:
            self.should_exit.set()
        if self.exporting:
            self.exporting.keep_exporter()
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if worker.restart_at is not None:
                if time.monotonic() >= worker.restart_at:
                    self.processes[index] = self.start_worker()
                continue
            was_ready = worker.ready
            if not worker.responsive(self.config.timeout_worker_healthcheck):
                self.bury(worker)
            elif worker.ready and not was_ready:
                self.has_served = True
                self.failed_starts = 0

    def bury(self, worker: WatchedProcess) -> None:
        """Decide when a worker that has ended, or does not answer, is replaced."""
        if worker.exitcode is None:
            logger.error("Worker [%s] does not answer; starting another one", worker.pid)
            worker.cause = "timeout"
        elif worker.exitcode == 0 and self.config.limit_max_requests:
            worker.cause = "recycled"
        worker.kill()
        worker.join()
        self.count_exit(worker)
        code = worker.exitcode or 0
        if worker.ready:
            worker.restart_at = time.monotonic()
            logger.error("Worker [%s] ended with %s", worker.pid, code)
            return
        pause = min(PAUSE * 2**self.failed_starts, LONGEST_PAUSE)
        self.failed_starts += 1
        worker.restart_at = time.monotonic() + pause
        # A negative code is a signal, which is not the application's failure.
        if not self.has_served and code >= 0:
            logger.error("Worker [%s] failed to start", worker.pid)
            self.should_exit.set()
        else:
            logger.error(
                "Worker [%s] ended with %s before it was ready; next start in %d s", worker.pid, code, pause
            )

    def stopping(self) -> bool:
        """Whether the server drains or stops, or a signal to do so waits."""
        signaled = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}.intersection(self.signal_queue)
        return self.stop_at is not None or self.should_exit.is_set() or bool(signaled)

    @override
    def restart_all(self) -> None:
        """On SIGHUP, replace one worker after the other; each goes when its successor is ready."""
        for index, old in enumerate(self.processes):
            if self.stopping():
                return
            new = self.start_worker()
            if not self.becomes_ready(new):
                new.kill()
                new.join()
                self.count_exit(new)
                if not self.stopping():
                    logger.error("Worker [%s] was not ready in time; the others stay", new.pid)
                return
            old.terminate()
            old.join()
            self.count_exit(old)
            self.processes[index] = new

    def becomes_ready(self, worker: WatchedProcess) -> bool:
        """Wait until the worker serves; False when it ends, takes too long, or the server stops."""
        timeout = self.config.timeout_worker_healthcheck
        for _ in range(round(timeout / ROUND)):
            if self.stopping() or not worker.responsive(timeout):
                return False
            if worker.ready:
                return True
            time.sleep(ROUND)
        return False

    @override
    def handle_ttin(self) -> None:
        """Add a worker."""
        logger.info("Received SIGTTIN, increasing the number of processes.")
        self.processes_num += 1
        self.processes.append(self.start_worker())

    @override
    def handle_ttou(self) -> None:
        """Remove a worker."""
        before = [*self.processes]
        super().handle_ttou()
        for worker in before[len(self.processes) :]:
            self.count_exit(worker)

    def handle_quit(self) -> None:
        """Stop immediately, as on SIGINT; the stock class ignores SIGQUIT."""
        self.handle_int()

    @override
    def handle_term(self) -> None:
        """Drain on the first SIGTERM; stop on the second. SIGINT stops immediately."""
        seconds = 0 if self.stop_at is not None else health.drain_seconds()
        if not seconds:
            super().handle_term()
            return
        logger.info("Received SIGTERM, draining for %d s", seconds)
        health.start_drain()
        for worker in self.processes:
            worker.drain()
        self.stop_at = time.monotonic() + seconds


class StatReloader(StatReload):
    """The parent process under `--reload`. It does not drain: it is for development."""

    def __init__(
        self, config: Config, target: Callable[[list[socket] | None], None], sockets: list[socket]
    ) -> None:
        super().__init__(config, target, sockets)
        check_attributes(self, "mtimes", "iter_py_files")

    @override
    def startup(self) -> None:
        """Start the server. Each later edit counts."""
        self.mtimes = self.modification_times()
        super().startup()

    @override
    def restart(self) -> None:
        """Start the server again. Each edit since then counts."""
        before = self.modification_times()
        super().restart()
        self.mtimes = before

    def modification_times(self) -> dict[Path, float]:
        """When each file was modified."""
        found: dict[Path, float] = {}
        for file in self.iter_py_files():
            with suppress(FileNotFoundError):
                found[file] = file.stat().st_mtime
        return found
