"""A single server process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, STARTED, answers, free_port, last_lines, poll


class Server:
    """One server process, started as a user would, on a free port of 127.0.0.1."""

    def __init__(self, *command: str, cwd: Path = ROOT, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        base = {name: value for name, value in os.environ.items() if name not in ("HOST", "PORT")}
        self.name = " ".join(command)
        STARTED.append(self)
        self._log = (Path(os.environ["PYTEST_LOGS"]) / f"{self.port}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=cwd,
            env=base | {"HOST": "127.0.0.1", "PORT": str(self.port)} | environ,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def log(self) -> str:
        """What it printed so far."""
        return Path(self._log.name).read_text()

    def recent_log(self, since: float) -> str:
        """The end of its log; a server belongs to one test, so that `since` does not matter."""
        return last_lines(self.log())

    def wait(self, path: str = "/livez") -> "Server":
        """Return when it answers; fail with its log when it ends or stays silent."""

        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode}\n{self.log()}")
            return answers(self.url + path)

        try:
            # A server that ended is noticed immediately, so that a long wait hides no failure. On a busy
            # machine it is needed: a parent process of two workers loads the application three times.
            poll(ready, seconds=60, log=self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def exit_code(self, seconds: float = 20) -> int:
        """Its exit code; fails with its log when it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s\n{self.log()}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(35)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._log.close()


def workers(server: Server) -> set[int]:
    """The master's children that have booted: before, they have its signal handlers and lose a SIGTERM."""
    pid = server.process.pid
    found = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            status = Path(f"/proc/{child}/status").read_text()
        except OSError:  # ended meanwhile
            continue
        caught = int(re.search(r"^SigCgt:\t(\w+)", status, re.MULTILINE)[1], 16)
        if not caught & 1 << (signal.SIGHUP - 1):
            found.add(int(child))
    return found
