"""A database server for the tests, as a package of the machine has it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.commands import free_port, lacking, poll, run


class Postgres:
    """A real PostgreSQL server of this machine's package, on a port of 127.0.0.1 and a socket."""

    def __init__(self) -> None:
        found = [Path(shutil.which("initdb") or "/").parent, *Path("/usr/lib/postgresql").glob("*/bin")]
        binaries = next((path for path in reversed(found) if (path / "initdb").exists()), None)
        if binaries is None:
            lacking("no PostgreSQL server on this machine")
        # Not below pytest's own directory, which only its user may enter.
        self.directory = Path(tempfile.mkdtemp())
        self.directory.chmod(0o755)
        self.port = free_port()
        self.url = f"postgres://app:a%20secret@127.0.0.1:{self.port}/postgres"
        self._user = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._user = {"user": "nobody", "cwd": "/"}
            shutil.chown(self.directory, "nobody")
        data = self.directory / "db"
        run(binaries / "initdb", "--pgdata", data, "--username", "app", "--auth", "trust", **self._user)
        listen = ("-p", str(self.port), "-h", "127.0.0.1", "-k", self.directory)
        self._command = (binaries / "postgres", "-D", data, *listen)
        self.start()

    def start(self) -> None:
        """Start and wait until it listens."""
        log = self.directory / "log"
        with log.open("a") as output:
            self._server = subprocess.Popen(self._command, stdout=output, stderr=output, **self._user)

        def listening() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        poll(listening, log=log.read_text)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop; with SIGQUIT at once, as a crash would."""
        self._server.send_signal(number)
        self._server.wait(30)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile it accepts connections and answers nothing, also on those that are open."""
        pid = self._server.pid
        pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        for one in pids:
            os.kill(one, signal.SIGSTOP)
        try:
            yield
        finally:
            for one in reversed(pids):
                os.kill(one, signal.SIGCONT)

    def __enter__(self) -> "Postgres":
        return self

    def __exit__(self, *error: object) -> None:
        # It waits for its clients, unless told to end at once.
        self.stop(signal.SIGINT)
        shutil.rmtree(self.directory)
