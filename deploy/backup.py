"""`make backup`, `make restore` and `make restore-test`: Django's database, files, keys and certificates.

    python3 -m deploy.backup backup
    python3 -m deploy.backup [--force] restore FILE
    python3 -m deploy.backup restore-test [FILE]

A backup is one file, an archive that `tar` reads. manifest.json is its last member: it has the checksum of
each other member, and the number of rows of each table. A file that is not whole is never used.

`restore-test` restores the newest backup into a database that is removed afterwards, compares the rows, and
checks Django's migrations. docs/operations.md explains the rest. It needs Docker Compose and Python 3.9; in
process mode, the environment of process mode.
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

# What runs where Django runs; the other end of everything that this program does with the data.
PROGRAM = Path(__file__).with_name("django_data.py")
BLOCK = 1024 * 1024
STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
# Files with the variables of the deployment and of the services.
ENV_FILE = re.compile(r"\.env(\.[\w-]+)*")
# The services in docker-compose.yml, and the image if there is no service for PostgreSQL.
DJANGO, POSTGRES, EDGE = "django", "postgres", "edge"
POSTGRES_IMAGE = "postgres:18"
# As x-container in docker-compose.yml.
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
# Seconds that a new PostgreSQL may take to start.
STARTS_WITHIN = 120
TIME = "%Y%m%dT%H%M%SZ"

Manifest = dict[str, Any]


def fail(message: str) -> NoReturn:
    """Exit with this line."""
    sys.exit(message)


def last_line(text: str) -> str:
    """What a program said at its end."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}".replace(".0 ", " ")
        size /= 1024
    return f"{size:.1f} TiB"


# The file


def checksum(manifest: Manifest) -> str:
    """The checksum of a manifest, which is a part of it."""
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


class Writer:
    """Writes an archive as `tar` does; the size of what is added need not be known before."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.parts: dict[str, dict[str, Any]] = {}

    def add(self, member: tarfile.TarInfo, content: IO[bytes] | None = None) -> None:
        """Add a member; `content` is what a file contains."""
        start = self.file.tell()
        self.file.write(member.tobuf(tarfile.GNU_FORMAT))
        if content is None:
            return
        digest, size = hashlib.sha256(), 0
        while block := content.read(BLOCK):
            self.file.write(block)
            digest.update(block)
            size += len(block)
        self.file.write(bytes(-size % tarfile.BLOCKSIZE))
        end = self.file.tell()
        member.size = size
        self.file.seek(start)
        self.file.write(member.tobuf(tarfile.GNU_FORMAT))
        self.file.seek(end)
        self.parts[member.name] = {"sha256": digest.hexdigest(), "bytes": size}

    def add_file(self, name: str, content: IO[bytes]) -> None:
        """Add a file for its owner alone."""
        member = tarfile.TarInfo(name)
        member.mode, member.mtime = 0o600, int(time.time())
        self.add(member, content)

    def add_archive(self, stream: IO[bytes], prefix: str = "") -> None:
        """Add each file, directory and link of another archive, which is read only once."""
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                if member.name == ".":
                    continue
                member.name = prefix + member.name.removeprefix("./")
                if member.isreg():
                    self.add(member, archive.extractfile(member))
                elif member.isdir() or member.issym():
                    self.add(member)

    def finish(self, manifest: Manifest) -> None:
        """Add the manifest and the end of the archive, and let all of it survive a power failure."""
        member = tarfile.TarInfo("manifest.json")
        manifest = manifest | {"format": 1, "parts": self.parts}
        text = json.dumps(manifest | {"sha256": checksum(manifest)}, indent=1).encode()
        member.mode, member.mtime, member.size = 0o600, int(time.time()), len(text)
        self.file.write(member.tobuf(tarfile.GNU_FORMAT) + text + bytes(-len(text) % tarfile.BLOCKSIZE))
        self.file.write(bytes(2 * tarfile.BLOCKSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())


def verify(path: Path) -> Manifest:
    """The manifest of a backup; exits unless the file is whole."""
    found: dict[str, Any] = {}
    manifest: Manifest = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content and member.name == "manifest.json":
                    manifest = json.load(content)
                elif content:
                    digest = hashlib.sha256()
                    while block := content.read(BLOCK):
                        digest.update(block)
                    found[member.name] = {"sha256": digest.hexdigest(), "bytes": member.size}
    except (tarfile.TarError, EOFError, ValueError) as error:
        fail(f"{path}: not a whole backup: {error}")
    if not isinstance(manifest, dict) or manifest.pop("sha256", "") != checksum(manifest):
        fail(f"{path}: not a whole backup: its end is missing or damaged")
    parts = manifest["parts"]
    for name in sorted(found.keys() | parts.keys()):
        if found.get(name) != parts.get(name):
            fail(f"{path}: damaged: {name} is not what was saved")
    return manifest


def send(path: Path, names: str, stream: IO[bytes], prefix: str = "") -> None:
    """Write the members whose names match as an archive, without the prefix; close the stream."""
    with (
        tarfile.open(path, "r:") as archive,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as copy,
    ):
        for member in archive:
            if re.fullmatch(names, member.name):
                content = archive.extractfile(member) if member.isreg() else None
                member.name = member.name.removeprefix(prefix)
                copy.addfile(member, content)
    stream.close()


def compare(manifest: Manifest, facts: dict[str, Any]) -> None:
    """Exit unless each table has as many rows as when the backup was made."""
    saved, restored = manifest["database"]["tables"], facts["tables"]
    for name in sorted(saved.keys() | restored.keys()):
        if saved.get(name) != restored.get(name):
            fail(f"{name}: {restored.get(name, 'no')} rows restored, {saved.get(name, 'no')} saved")


class Directory:
    """BACKUP_DIR: the backups of this project, and which of them was restored last."""

    def __init__(self, path: Path, project: str, keep: int) -> None:
        self.path, self.project, self.keep = path, project, keep
        self.draft = path / f".{project}.draft"
        self.note = path / f"{project}.restored"

    def lock(self) -> None:
        """Exit if another backup or restore of this project runs; remove what an interrupted one left."""
        self.path.mkdir(0o700, parents=True, exist_ok=True)
        # Locked until this program ends.
        self.locked = os.open(self.path / f".{self.project}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{self.path}: another backup or restore of {self.project} is running")
        self.draft.unlink(missing_ok=True)

    def backups(self) -> list[Path]:
        """The backups of this project, the oldest first."""
        name = re.compile(re.escape(self.project) + r"-\d{8}T\d{6}Z\.tar")
        return sorted(path for path in self.path.glob("*.tar") if name.fullmatch(path.name))

    def newest(self) -> Path:
        """The newest backup."""
        if not self.backups():
            fail(f"{self.path}: there is no backup of {self.project}; make one with make backup")
        return self.backups()[-1]

    def next(self) -> Path:
        """The name of a backup that is made now."""
        while (path := self.path / f"{self.project}-{time.strftime(TIME, time.gmtime())}.tar").exists():
            time.sleep(0.1)  # a name has the second of its backup
        return path

    def restored(self) -> Path | None:
        """The backup that `restore-test` has restored last, if it is still there."""
        name = self.note.read_text(encoding="utf-8").strip() if self.note.exists() else ""
        return next((path for path in self.backups() if path.name == name), None)

    def rotate(self) -> None:
        """Keep the newest backups, and the one that was restored last."""
        for path in self.backups()[: -self.keep]:
            if path != self.restored():
                path.unlink()

    def note_restored(self, path: Path) -> None:
        """Remember which backup was restored."""
        draft = self.note.with_name(f".{self.note.name}")
        draft.write_text(f"{path.name}\n", encoding="utf-8")
        draft.replace(self.note)

    def age(self) -> str:
        """How old the newest backup is that was restored."""
        path = self.restored()
        if not path:
            return "no backup has been restored yet: make restore-test"
        hours = (time.time() - made(path)) / 3600
        return f"the newest backup that was restored, {path.name}, is {hours:.1f} hours old"


def made(path: Path) -> float:
    """When a backup was made, by its name."""
    return calendar.timegm(time.strptime(path.stem[-16:], TIME))


def sync(directory: Path) -> None:
    """Let a renamed file survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


# Where Django runs


class Program:
    """A program with pipes; it ends with the block of `with`, and the block fails if it has failed."""

    def __init__(
        self, *command: str, environ: dict[str, str] | None = None, cleanup: tuple[str, ...] = ()
    ) -> None:
        self.command, self.cleanup = command, cleanup
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the object
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=dict(os.environ) | (environ or {}),
            # Ctrl-C is for this program alone, which ends the other one.
            start_new_session=True,
        )
        self.stdin: IO[bytes] = self.process.stdin  # type: ignore[assignment]
        self.stdout: IO[bytes] = self.process.stdout  # type: ignore[assignment]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        # What went wrong in the program comes before what that caused here.
        broken = isinstance(error, (BrokenPipeError, tarfile.TarError, ValueError))
        try:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
            if kind is None or broken:
                self.stdout.read()
                if self.process.wait():
                    self.errors.seek(0)
                    fail(last_line(self.errors.read().decode("utf-8", "replace")))
        finally:
            self.errors.close()
            self.stdout.close()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
                if self.cleanup:
                    output(*self.cleanup)


def run(*command: str, environ: dict[str, str] | None = None) -> str:
    """The output of a command; exits with its last line if it fails."""
    with Program(*command, environ=environ) as program:
        program.stdin.close()
        return program.stdout.read().decode()


class Containers:
    """Django runs in a container of this Compose project."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = json.loads(run("docker", "compose", "config", "--format", "json"))
        every = json.loads(run("docker", "compose", "--profile", "*", "config", "--format", "json"))
        self.project: str = self.config["name"]
        if DJANGO not in self.config["services"]:
            fail(f"docker-compose.yml: there is no service {DJANGO}")
        self.django_image: str = self.config["services"][DJANGO]["image"]
        self.postgres_image: str = every["services"].get(POSTGRES, {}).get("image", POSTGRES_IMAGE)
        self.names = [f"{self.project}-{name}" for name in ("backup", "backup-tool", "restore-test")]

    def settings(self) -> dict[str, str]:
        """The variables of the shell and of .env."""
        lines = run("docker", "compose", "config", "--environment").splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def remove_leftovers(self) -> None:
        """Remove the containers of an interrupted backup or restore."""
        output("docker", "rm", "--force", "--volumes", *self.names)

    def compose_run(self, service: str, *command: str, options: tuple[str, ...] = ()) -> Program:
        """Run a command in a new container of a service, with its volumes and networks."""
        run_options = ("--rm", "--no-deps", "--no-TTY", "--pull", "never", "--name", self.names[0], *options)
        cleanup = ("docker", "rm", "--force", "--volumes", self.names[0])
        return Program("docker", "compose", "run", *run_options, service, *command, cleanup=cleanup)

    def docker_run(self, *command: str, environ: dict[str, str]) -> Program:
        """Run a container that belongs to no service; `command` begins with options and the image."""
        # By name, because everyone on this machine can read a command line.
        variables = [word for name in environ for word in ("--env", name)]
        options = ("--rm", "--interactive", "--name", self.names[1], *HARDENED, "--tmpfs=/tmp", *variables)
        cleanup = ("docker", "rm", "--force", "--volumes", self.names[1])
        return Program("docker", "run", *options, *command, environ=environ, cleanup=cleanup)

    def django(self, *arguments: str) -> Program:
        """Run deploy/django_data.py in a container of Django."""
        # No key is made in a new data directory.
        options = ("--env", "DJANGO_SECRET_KEY=unused", "--env", "DJANGO_SECRET_KEY_FILE=")
        command = ("python", "-c", PROGRAM.read_text(encoding="utf-8"), *arguments)
        return self.compose_run(DJANGO, *command, options=options)

    def tool(self, facts: dict[str, Any], program: str, *arguments: str, network: str = "") -> Program:
        """Run pg_dump or pg_restore in the networks of Django, or in another one."""
        networks = [
            self.config["networks"][name]["name"] for name in self.config["services"][DJANGO]["networks"]
        ]
        options = [f"--network={name}" for name in ([network] if network else networks)]
        command = (*options, "--user=65534:65534", f"--entrypoint={program}", self.postgres_image)
        return self.docker_run(*command, *arguments, environ={"PGPASSWORD": facts["password"]})

    def add_certificates(self, writer: Writer) -> None:
        """Add the data of the edge: certificates, their keys and accounts, a local authority."""
        if EDGE in self.config["services"]:
            command = ("-cf", "-", "-C", "/data", ".")
            with self.compose_run(EDGE, *command, options=("--entrypoint", "tar")) as tar:
                writer.add_archive(tar.stdout, "edge/")

    def restore_certificates(self, path: Path) -> None:
        """Give an edge without data the certificates of a backup."""
        if EDGE not in self.config["services"]:
            return
        command = "if [ -e caddy/certificates ]; then cat >/dev/null; else tar -xpf -; fi"
        with self.compose_run(EDGE, "-c", f"cd /data; {command}", options=("--entrypoint", "sh")) as tar:
            send(path, "edge/.+", tar.stdin, prefix="edge/")

    def prepare(self, kind: str) -> None:
        """Build the images on a new machine, and start the PostgreSQL of this project."""
        if not run("docker", "image", "ls", "--quiet", self.django_image):
            print("building the images", flush=True)
            run("docker", "compose", "build")
        if kind == "postgresql" and POSTGRES in self.config["services"]:
            options = ("--detach", "--wait", "--no-build", "--no-recreate")
            run("docker", "compose", "up", *options, POSTGRES)

    def stop(self) -> list[str]:
        """Stop the services that use the data; their names."""
        running = run(
            "docker", "compose", "ps", "--services", "--status", "running", "--status", "restarting"
        ).split()
        services = self.config["services"]
        using = [name for name in running if services.get(name, {}).get("image") == self.django_image]
        if using:
            run("docker", "compose", "stop", *using)
        return using

    def start(self, services: list[str]) -> None:
        """Start the services again, and wait until they are healthy."""
        if services:
            options = ("--detach", "--wait", "--no-build", "--no-deps", "--no-recreate")
            run("docker", "compose", "up", *options, *services)

    @contextlib.contextmanager
    def trial(self, path: Path, manifest: Manifest) -> Iterator[Program]:
        """Django with a database that is removed afterwards, in no network."""
        service = self.config["services"][DJANGO]
        environ = {
            name: str(value or "").replace("$$", "$")
            for name, value in service["environment"].items()
            # Those would be the Docker client's.
            if not name.startswith("DOCKER") and name != "PATH"
        }
        environ |= {"DATA_DIR": "/data", "COMPOSE_PROFILES": "", "DATABASE_URL_FILE": "", "DATABASE_URL": ""}
        environ |= {"DJANGO_SECRET_KEY": "unused", "DJANGO_SECRET_KEY_FILE": ""}
        with contextlib.ExitStack() as stack:
            network = "none"
            if manifest["database"]["kind"] == "postgresql":
                facts = stack.enter_context(self.trial_server(manifest["database"]["bytes"]))
                network = f"container:{self.names[2]}"
                restore_dump(self, path, facts, network=network)
                environ["DATABASE_URL"] = "postgres://django@127.0.0.1/postgres"
            storage = storage_for("/data", manifest["database"]["bytes"], 10001)
            command = ("python", "-c", PROGRAM.read_text(encoding="utf-8"), "try")
            options = (f"--network={network}", *storage, self.django_image)
            yield stack.enter_context(self.docker_run(*options, *command, environ=environ))

    @contextlib.contextmanager
    def trial_server(self, size: int) -> Iterator[dict[str, Any]]:
        """A new PostgreSQL of the project's image, which only its own network namespace reaches."""
        name, data = self.names[2], "/var/lib/postgresql/trial"
        writable = ("--tmpfs=/tmp", "--tmpfs=/var/run/postgresql:mode=1777", "--shm-size=128m")
        options = ("--network=none", "--user=999:999", *HARDENED, *writable, "--entrypoint=sh")
        initdb = f"initdb --pgdata={data} --username=django --auth=trust --encoding=UTF8 --no-sync"
        command = f"{initdb} && exec postgres -D {data} -c fsync=off -c full_page_writes=off"
        storage = storage_for("/var/lib/postgresql", size, 999)
        start = ("--detach", "--name", name, *options, *storage, self.postgres_image, "-c", command)
        try:
            run("docker", "run", *start)
            deadline = time.monotonic() + STARTS_WITHIN
            while not succeeds("docker", "exec", name, "pg_isready", "--quiet", "--host=127.0.0.1"):
                running = run("docker", "inspect", "--format", "{{.State.Running}}", name).strip() == "true"
                if not running or time.monotonic() > deadline:
                    fail(f"{self.postgres_image} does not start: {last_line(output('docker', 'logs', name))}")
                time.sleep(0.2)
            address = {"host": "127.0.0.1", "user": "django", "dbname": "postgres"}
            yield {"connection": address, "password": ""}
        finally:
            output("docker", "rm", "--force", "--volumes", name)


class Processes:
    """Django runs as a local process, with the environment of process mode."""

    def __init__(self) -> None:
        from deploy.process import environment

        self.project = re.sub(r"[^a-z0-9_-]", "", Path.cwd().name.lower()) or "project"
        self.environ = environment.of_service(Path.cwd(), "django")
        self.environ |= {"DJANGO_SECRET_KEY": "unused", "DJANGO_SECRET_KEY_FILE": ""}

    def settings(self) -> dict[str, str]:
        """The variables of the shell and of .env."""
        return self.environ

    def remove_leftovers(self) -> None:
        """Nothing outlives this program."""

    def django(self, *arguments: str) -> Program:
        """Run deploy/django_data.py."""
        return Program(
            sys.executable, "-c", PROGRAM.read_text(encoding="utf-8"), *arguments, environ=self.environ
        )

    def tool(self, facts: dict[str, Any], program: str, *arguments: str, network: str = "") -> Program:
        """Run pg_dump or pg_restore of this machine."""
        del network
        try:
            return Program(program, *arguments, environ={"PGPASSWORD": facts["password"]})
        except FileNotFoundError:
            fail(f"{program}: not found; install PostgreSQL's client, at least of the server's version")

    def add_certificates(self, writer: Writer) -> None:
        """There is no edge."""

    def restore_certificates(self, path: Path) -> None:
        """There is no edge."""

    def prepare(self, kind: str) -> None:
        """Nothing has to be started."""

    def stop(self) -> list[str]:
        """Stop Django if it runs."""
        running = Path(".run/supervisor.sock").exists() and succeeds(*self.control("status", "django"))
        if running:
            run(*self.control("stop", "django"))
        return ["django"] if running else []

    def start(self, services: list[str]) -> None:
        """Start it again."""
        if services:
            run(*self.control("start", *services))

    def control(self, *arguments: str) -> tuple[str, ...]:
        """A command of supervisor."""
        return (".venv/bin/supervisorctl", "--configuration", "deploy/process/supervisord.conf", *arguments)

    @contextlib.contextmanager
    def trial(self, path: Path, manifest: Manifest) -> Iterator[Program]:
        """Django with a database in a temporary directory."""
        del path
        if manifest["database"]["kind"] == "postgresql":
            fail(
                "restore-test of PostgreSQL needs a container engine, for a server that is removed afterwards"
            )
        with tempfile.TemporaryDirectory() as directory:
            environ = self.environ | {"DATA_DIR": directory, "DATABASE_URL": "", "DATABASE_URL_FILE": ""}
            command = (sys.executable, "-c", PROGRAM.read_text(encoding="utf-8"), "try")
            with Program(*command, environ=environ) as program:
                yield program


def storage_for(path: str, size: int, owner: int) -> tuple[str, ...]:
    """An option of `docker run`: memory for a small database, else a volume that goes with the container."""
    needed = 2 * size + 512 * 1024 * 1024
    with contextlib.suppress(OSError):
        available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        if available and needed < int(available[1]) * 1024 // 2:
            return (f"--tmpfs={path}:uid={owner},gid={owner},mode=0700,size={needed}",)
    return (f"--volume={path}",)


def output(*command: str) -> str:
    """What a command that may fail says."""
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return found.stdout


def succeeds(*command: str) -> bool:
    """Whether a command ends with exit code 0."""
    return not subprocess.run(command, capture_output=True, check=False).returncode


# The commands


def connection(facts: dict[str, Any], **changes: str) -> str:
    """The option with which a program of PostgreSQL finds the database; the password is no part of it."""
    parameters = facts["connection"] | changes
    quoted = {name: re.sub(r"(['\\])", r"\\\1", str(value)) for name, value in parameters.items()}
    return "--dbname=" + " ".join(f"{name}='{value}'" for name, value in quoted.items() if value)


def restore_dump(
    place: Containers | Processes, path: Path, facts: dict[str, Any], *, network: str = "", **changes: str
) -> None:
    """Run pg_restore with the dump of a backup."""
    options = (
        "--exit-on-error",
        "--no-owner",
        "--no-privileges",
        "--no-password",
        connection(facts, **changes),
    )
    with (
        tarfile.open(path, "r:") as archive,
        place.tool(facts, "pg_restore", *options, network=network) as program,
    ):
        content = archive.extractfile("database.dump")
        while content and (block := content.read(BLOCK)):
            program.stdin.write(block)


def backup(place: Containers | Processes, directory: Directory) -> None:
    """Make a backup, check it, and remove the oldest ones."""
    path = directory.next()
    try:
        with os.fdopen(os.open(directory.draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
            write(place, Writer(file), path)
        manifest = verify(directory.draft)
        complete()
        directory.draft.rename(path)
    except OSError as error:
        fail(f"{error.filename or directory.path}: {error.strerror}; no backup was made")
    finally:
        directory.draft.unlink(missing_ok=True)
    sync(directory.path)
    directory.rotate()
    print(f"{path}: {human(path.stat().st_size)}, {describe(manifest)}\n{directory.age()}", flush=True)


def write(place: Containers | Processes, writer: Writer, path: Path) -> None:
    """Write everything that a new machine needs, next to the repository."""
    with place.django("export") as program:
        facts = json.loads(program.stdout.readline())
        if facts["kind"] == "postgresql":
            # pg_dump and the number of rows are of the same moment.
            options = ("--format=custom", f"--snapshot={facts['snapshot']}", "--lock-wait-timeout=60s")
            with place.tool(facts, "pg_dump", *options, "--no-password", connection(facts)) as dump:
                writer.add_file("database.dump", dump.stdout)
        program.stdin.write(b"\n")
        program.stdin.flush()
        writer.add_archive(program.stdout)
    for file in sorted(Path().glob(".env*")):
        if (
            ENV_FILE.fullmatch(file.name)
            and not file.name.endswith((".example", ".draft"))
            and file.is_file()
        ):
            with file.open("rb") as content:
                writer.add_file(f"env/{file.name}", content)
    place.add_certificates(writer)
    if not sum(part["bytes"] for name, part in writer.parts.items() if name.startswith("database.")):
        fail("the dump of the database is empty")
    writer.finish(
        {
            "project": place.project,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made(path))),
            "version": place.settings().get("VERSION") or "latest",
            "source": source(),
            "database": {name: facts[name] for name in ("kind", "server", "bytes", "tables")},
        }
    )


def source() -> str:
    """Which version of the repository this is; "" without Git."""
    if not shutil.which("git"):
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def describe(manifest: Manifest) -> str:
    """What a backup contains, in a few words."""
    tables = manifest["database"]["tables"]
    return f"{manifest['database']['kind']}, {len(tables)} tables with {sum(tables.values())} rows"


def restore(runtime: str, path: Path, force: bool) -> None:
    """Replace the data of this project by those of a backup."""
    manifest = verify(path)
    # First, because they name the project, its version and its profiles.
    restore_env_files(path)
    place, _ = prepare(runtime)
    lock_deployments()
    place.prepare(manifest["database"]["kind"])
    if not force:
        with place.django("inspect") as program:
            facts = json.loads(program.stdout.readline())
        if facts["tables"]:
            rows = sum(facts["tables"].values())
            fail(
                f"there is a database already, with {len(facts['tables'])} tables and {rows} rows; "
                "FORCE=1 replaces it, and keeps it under another name"
            )
    # To the microsecond: a restore that was killed just before has used a name, too.
    now = f"{time.strftime(TIME, time.gmtime()).lower()}{time.time_ns() // 1000 % 10**6:06}"
    try:
        compare(manifest, stage(place, path, manifest))
        place.restore_certificates(path)
    except BaseException:
        with contextlib.suppress(SystemExit), place.django("discard"):
            pass
        raise
    complete()
    stopped = place.stop()
    try:
        with place.django("swap", now) as program:
            kept = json.loads(program.stdout.readline())["kept"]
        if stopped:
            with place.django("migrate"):
                pass
    finally:
        place.start(stopped)
    print(f"restored {path}: {describe(manifest)}; {f'kept: {kept}' if kept else 'there was none before'}")
    if not stopped:
        print("start the services with make up")


def restore_env_files(path: Path) -> None:
    """Write the .env files that are missing; those that exist stay."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = member.name.removeprefix("env/")
            if f"env/{name}" != member.name or not ENV_FILE.fullmatch(name) or not member.isreg():
                continue
            content = archive.extractfile(member)
            text = content.read() if content else b""
            if not Path(name).exists():
                with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(text)
            elif Path(name).read_bytes() != text:
                print(f"{name}: stays as it is; the backup has another one, {member.name}", flush=True)


def stage(place: Containers | Processes, path: Path, manifest: Manifest) -> dict[str, Any]:
    """Restore next to what is in use; what the new database is."""
    with place.django("stage") as program:
        send(path, r"database[.]sqlite3|data/.+|manifest[.]json", program.stdin)
        staged: dict[str, Any] = json.loads(program.stdout.readline())
    if manifest["database"]["kind"] == "postgresql":
        restore_dump(place, path, staged, dbname=staged["staged"])
        with place.django("inspect", staged["staged"]) as program:
            staged = json.loads(program.stdout.readline())
    return staged


def restore_test(place: Containers | Processes, directory: Directory, path: Path) -> None:
    """Restore a backup into a database that is removed afterwards."""
    manifest = verify(path)
    started = time.monotonic()
    with place.trial(path, manifest) as program:
        send(path, r"database[.]sqlite3|manifest[.]json", program.stdin)
        facts = json.loads(program.stdout.readline())
    compare(manifest, facts)
    if path.resolve() in [backup.resolve() for backup in directory.backups()]:
        directory.note_restored(path)
        with place.django("record", str(int(made(path)))):
            pass
    migrated = "this version's migrations applied" if facts["migrated"] else "migrations as in this version"
    seconds = time.monotonic() - started
    print(
        f"{path}: restored in {seconds:.1f} s, {describe(manifest)}, {migrated}\n{directory.age()}",
        flush=True,
    )


def lock_deployments() -> None:
    """Exit if `make deploy` runs; until this program ends, it does not."""
    try:
        fcntl.flock(os.open(".", os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail("a deployment of this project is running; try again when it has finished")


def exit_on_signals(message: str) -> None:
    """Let a signal end the program through its clean-up; `nohup` stays in effect."""

    def stop(number: int, _frame: object) -> None:
        fail(f"{signal.Signals(number).name}: {message}")

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def complete() -> None:
    """From here on what has been begun is completed, whatever signal arrives."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)


def prepare(runtime: str) -> tuple[Containers | Processes, Directory]:
    """Where Django runs, and the directory of its backups, locked."""
    place = Containers() if runtime == "docker" else Processes()
    settings = place.settings()
    keep = settings.get("BACKUP_KEEP") or "7"
    if not re.fullmatch("[1-9][0-9]{0,4}", keep):
        fail(f"BACKUP_KEEP={keep!r}: must be a whole number from 1 to 10000")
    directory = Directory(Path(settings.get("BACKUP_DIR") or "backups"), place.project, int(keep))
    directory.lock()
    place.remove_leftovers()
    return place, directory


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["backup", "restore", "restore-test"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--force", action="store_true", help="replace a database that has tables")
    parser.add_argument("--runtime", choices=["docker", "process"], default="docker")
    arguments = parser.parse_args()
    os.umask(0o077)
    try:
        if arguments.command == "restore":
            if not arguments.file:
                fail("which backup? make restore BACKUP=FILE")
            exit_on_signals("nothing was replaced")
            restore(arguments.runtime, arguments.file, arguments.force)
            return
        exit_on_signals("no backup was made" if arguments.command == "backup" else "no backup was restored")
        place, directory = prepare(arguments.runtime)
        if arguments.command == "backup":
            backup(place, directory)
        else:
            restore_test(place, directory, arguments.file or directory.newest())
    except OSError as error:
        fail(f"{error.filename or 'backup'}: {error.strerror or error}")


if __name__ == "__main__":
    main()
