"""The modes of modes.toml; each can be started with its command exactly as it is written there."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
SECONDS_TO_START = 30
SECONDS_TO_STOP = 40
# More than Gunicorn waits between two workers, which is at most 0.1 s.
SECONDS_BETWEEN_STARTS = 0.5


@dataclass(frozen=True)
class Running:
    """A server that answers: its address, its first process and its log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def tree(self) -> list[int]:
        """The ids of all its processes, the first one first."""
        found = [self.process.pid]
        for pid in found:
            for thread in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):  # ended meanwhile
                    found += [int(child) for child in thread.read_text().split()]
        return found

    def each(self, name: str) -> Iterator[str]:
        """What /proc says about each of its processes in the file `name`."""
        for pid in self.tree():
            with suppress(OSError):  # ended meanwhile, as a recycled worker does
                yield Path(f"/proc/{pid}/{name}").read_text()

    def cpu(self) -> float:
        """Seconds of CPU time that all its processes have used."""
        ticks = [text.rpartition(")")[2].split()[11:15] for text in self.each("stat")]
        return sum(int(count) for counts in ticks for count in counts) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes that it occupies: the proportional set sizes (PSS) of all its processes."""
        lines = [line.split() for text in self.each("smaps_rollup") for line in text.splitlines()]
        return sum(int(words[1]) * 1024 for words in lines if words[0] == "Pss:")


@dataclass(frozen=True)
class Mode:
    """One entry of modes.toml."""

    name: str
    app: str
    kind: str
    command: str
    equal: str = ""
    needs: str = ""
    recycle: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    file: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> str:
        """The module that has to be installed first, or ""."""
        return self.needs if self.needs and find_spec(self.needs) is None else ""

    @contextmanager
    def running(self, *flags: str, equal: bool = True) -> Iterator[Running]:
        """Start it on a free port of 127.0.0.1, and stop it; `equal` gives it an access log like ours."""
        port = free_port()
        line = self.command.format(app=APPS[self.app], port=port)
        words = shlex.split(line + (f" {self.equal}" if equal else "")) + list(flags)
        if words[0] == "python":
            words[0] = sys.executable
        # A copied command runs in an empty directory, so that it does not find our gunicorn.conf.py.
        ours = words[2] in ("serving.gunicorn", "serving.uvicorn")
        with tempfile.TemporaryDirectory() as scratch:
            directory = ROOT if ours else Path(scratch)
            if self.file:
                (directory / self.file["name"]).write_text(self.file["text"])
            own = {
                # Each server reads one of these, so a command without a port needs no extra flag.
                "PORT": str(port),
                "UVICORN_PORT": str(port),
                "PYTHONPATH": str(ROOT),
                "DJANGO_SECRET_KEY": "of a measurement",
            }
            # A copied command writes its server's access line; "warning" prevents a second one from ours.
            own |= self.environ if ours else {"LOG_LEVEL": "warning"}
            log = Path(scratch) / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    words, cwd=directory, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT
                )
            try:
                _wait(f"http://127.0.0.1:{port}/livez", process, log)
                running = Running(f"http://127.0.0.1:{port}", process, log)
                _wait_for_all(running)
                yield running
            finally:
                tree = Running("", process, log).tree() if process.poll() is None else []
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(SECONDS_TO_STOP)
                except subprocess.TimeoutExpired:
                    for pid in reversed(tree):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            with urlopen(url, timeout=1):
                return
        except (OSError, HTTPException) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{url} does not answer\n{log.read_text()}") from error
            time.sleep(0.05)


def _wait_for_all(running: Running) -> None:
    """Wait until no more workers start: the first one would take all connections, and keep them."""
    count = 0
    while (processes := len(running.tree())) != count:
        count = processes
        time.sleep(SECONDS_BETWEEN_STARTS)


_CONTENT = tomllib.loads((Path(__file__).parent / "modes.toml").read_text())
APPS: dict[str, str] = _CONTENT["apps"]
MODES = [Mode(**entry) for entry in _CONTENT["mode"]]
