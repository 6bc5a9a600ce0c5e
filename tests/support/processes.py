"""The services as local processes, as `make up RUNTIME=process` runs them."""

import os
import shutil
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from deploy.process.servers import SERVICES, TARGETS
from tests.support.commands import HOUSEKEEPING, ROOT, STARTED, answers, free_port, last_lines, poll, run
from tests.support.containers import Containers

# What `make up` runs: service -> what follows `python -m`.
PROGRAMS = {name: tuple(TARGETS[name].split()[2:]) for name in SERVICES}
# A file of each service, something in it that its page shows, and the same thing edited.
EDITS = {
    "django": ("wsgi_app/django_site/models.py", "author = models.CharField(", '"edited", '),
    "flask": ("wsgi_app/flask_site/__init__.py", 'service="flask', "-edited"),
    "fastapi": ("asgi_app/main.py", '"service": "fastapi', "-edited"),
}
# The services that answer JSON and keep no data: a module, the framework's object in it, the object
# that is served, and what serves it.
JSON: dict[str, tuple[str, str, str, str]] = {}
JSON["flask"] = ("wsgi_app.flask_site", "app", "application", "serving.gunicorn")
JSON["fastapi"] = ("asgi_app.main", "api", "app", "serving.uvicorn")
SWITCHES = dotenv_values(ROOT / "deploy/dev.env")


class Processes:
    """`make up RUNTIME=process` in a copy of the repository, on ports of its own."""

    runtime = "process"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(ROOT, directory, ignore=HOUSEKEEPING, dirs_exist_ok=True)
        (directory / ".venv").symlink_to(ROOT / ".venv")
        ports = {name: str(free_port()) for name in PROGRAMS}
        self.environ = os.environ | {f"{name.upper()}_PORT": port for name, port in ports.items()}
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        self.name = f"the processes in {directory}"
        STARTED.append(self)

    def direct(self, service: str) -> str:
        """The service's address: nothing stands before it."""
        return self.urls[service]

    def make(self, *arguments: str, **options: Any) -> str:
        """The output of `make ARGUMENTS RUNTIME=process`."""
        return run("make", *arguments, "RUNTIME=process", cwd=self.directory, env=self.environ, **options)

    def up(self) -> str:
        """Start and wait."""
        return self.make("up")

    def control(self, *arguments: str, **options: Any) -> str:
        """The output of `supervisorctl ARGUMENTS`."""
        program = self.directory / ".venv/bin/supervisorctl"
        options = {"cwd": self.directory, "env": self.environ} | options
        return run(program, "-c", "deploy/process/supervisord.conf", *arguments, **options)

    def manage_django(self, arguments: str, **environ: str) -> str:
        """`make manage` in this copy."""
        command = ("make", "manage", f"ARGS={arguments}", "RUNTIME=process")
        return run(*command, cwd=self.directory, env=self.environ | environ)

    def log(self, service: str = "*") -> str:
        """What the service printed."""
        return "\n".join(path.read_text() for path in (self.directory / ".run").glob(f"{service}.log"))

    def recent_log(self, since: float) -> str:
        """The end of every log that grew since that time."""
        paths = sorted(p for p in (self.directory / ".run").glob("*.log") if p.stat().st_mtime >= since)
        return "\n".join(f"{path.name}:\n{last_lines(path.read_text(), 30)}" for path in paths)

    def stop(self, service: str) -> int:
        """Stop as an operator does; the exit code."""
        self.control("stop", service)
        last = [line for line in self.log("supervisord").splitlines() if f"stopped: {service} (" in line][-1]
        return int(last.rpartition("exit status ")[2].rstrip(")")) if "exit status" in last else -1

    def start(self, service: str) -> None:
        """Start it again and wait until it is ready."""
        self.control("start", service)
        poll(lambda: answers(self.urls[service] + "/readyz"), log=lambda: self.log(service))

    def down(self) -> None:
        """Stop everything."""
        self.make("down")


def processes_of(directory: Path) -> dict[int, str]:
    """Command lines of everything that runs in this copy, by process id."""
    lines = {}
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if cwd.readlink() == directory:
                lines[int(cwd.parent.name)] = (cwd.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return {pid: line for pid, line in lines.items() if line}


Stack = Containers | Processes
