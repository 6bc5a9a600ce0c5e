"""Reads and writes Django's database and data directory for deploy/backup.py.

It runs where Django runs: in a container, as the argument of `python -c`, or in process mode. So it imports
nothing of this folder. Its first argument is the command:

export            print what the database is, wait for a line, then write an archive of the files
inspect [NAME]    print what the database is, or another one of the same server
stage             prepare what the archive on standard input contains; nothing that is in use changes
swap TIME         put what was prepared in place; what was there before is kept with TIME in its name
discard           remove what was prepared
migrate           apply the migrations of the code that runs
try               with SQLite, `stage` and `swap`; then inspect, and apply migrations that are missing
record SECONDS    write down when the newest backup was made that could be restored

What it prints is one line of JSON. An error is one line, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTINGS = "wsgi_app.django_site.settings"
# Files of the data directory that Django makes again. Hidden files and what a restore has kept are not
# saved either.
NOT_SAVED = ("static", "migrate.lock", "backup_time")
KEPT = "before-"
# The tables of PostgreSQL, without those of its extensions.
TABLES = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY (%s)"

Facts = dict[str, Any]


class SQLite:
    """The database is a file."""

    kind = "sqlite"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.path = Path(settings["NAME"])
        # In the same directory, so that it can be renamed to the database.
        self.staged = self.path.with_name(f".{self.path.name}.restore")
        # Next to the database, while it is open or was not closed.
        self.companions = [self.path.with_name(self.path.name + end) for end in ("-wal", "-shm", "-journal")]

    @staticmethod
    def open(path: Path) -> contextlib.closing[sqlite3.Connection]:
        """A connection to a database that exists."""
        uri = f"{path.absolute().as_uri()}?mode=rw"
        return contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10))

    def inspect(self, path: str | Path = "") -> Facts:
        """The number of rows of each table; exits if the database is damaged. Without a file, no tables."""
        path = Path(path or self.path)
        facts: Facts = {"kind": self.kind, "server": sqlite3.sqlite_version, "bytes": 0, "tables": {}}
        if not path.exists():
            return facts
        facts["bytes"] = path.stat().st_size
        with self.open(path) as database:
            (result,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if result != "ok":
                sys.exit(f"{path}: the database is damaged: {' '.join(result.split())}")
            names = database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            for name in (name for (name,) in names if not name.startswith("sqlite_")):
                quoted = name.replace('"', '""')
                (rows,) = database.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()  # noqa: S608  quoted
                facts["tables"][name] = rows
        return facts

    @contextlib.contextmanager
    def exported(self) -> Iterator[tuple[Facts, Path | None]]:
        """What a copy of the database is, and the copy."""
        if not self.path.exists():
            sys.exit(f"{self.path}: there is no database yet")
        for leftover in self.path.parent.glob(f".{self.path.name}.backup-*"):
            leftover.unlink(missing_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.backup-", dir=self.path.parent)
        os.close(descriptor)
        copy = Path(name)
        try:
            with self.open(self.path) as source, self.open(copy) as target:
                target.execute("PRAGMA synchronous = OFF")
                source.backup(target)
                # The copy is one file, without a log next to it.
                target.execute("PRAGMA journal_mode = DELETE")
            yield self.inspect(copy), copy
        finally:
            copy.unlink(missing_ok=True)

    def swap(self, time: str) -> str:
        """Replace the database; the one before is in the directory before-TIME."""
        kept = self.path.parent / f"{KEPT}{time}"
        if self.path.exists():
            kept.mkdir(0o700, exist_ok=True)
            with contextlib.suppress(sqlite3.DatabaseError), self.open(self.path) as database:
                try:
                    # Needs the database for itself, and leaves a single file.
                    database.execute("PRAGMA journal_mode = DELETE")
                except sqlite3.OperationalError as error:
                    sys.exit(f"{self.path}: {error}; no other process must use it now")
            for companion in self.companions:  # of a damaged database
                if companion.exists():
                    companion.rename(kept / companion.name)
            # A second name, so that there is a database at every moment.
            os.link(self.path, kept / self.path.name)
        self.staged.replace(self.path)
        sync(self.path.parent)
        return str(kept) if kept.exists() else ""

    def discard(self) -> None:
        """Remove the database that was prepared."""
        self.staged.unlink(missing_ok=True)


class PostgreSQL:
    """The database is on a server; deploy/backup.py runs pg_dump and pg_restore."""

    kind = "postgresql"

    def __init__(self, settings: dict[str, Any]) -> None:
        self.name = str(settings["NAME"])
        self.staged = f"{self.name}_restore"

    @staticmethod
    def parameters(**changes: str) -> dict[str, str]:
        """Those of Django's connections that every program of PostgreSQL knows."""
        import psycopg
        from django.db import connection

        known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
        found = {name: str(value) for name, value in connection.get_connection_params().items()}
        return {name: value for name, value in found.items() if name in known} | changes

    def connect(self, name: str = "") -> Any:
        """A connection without the time limits of Django's."""
        import psycopg

        database = psycopg.connect(**self.parameters(dbname=name or self.name), autocommit=True)  # type: ignore[arg-type]
        # As for pg_dump: a migration may have locked a table.
        for setting in ("statement_timeout=0", "idle_in_transaction_session_timeout=0", "lock_timeout='60s'"):
            database.execute(f"SET {setting}")
        return database

    def facts(self, database: Any) -> Facts:
        """The number of rows of each table, and how other programs reach the server."""
        names = [name for (name,) in database.execute(TABLES).fetchall()]
        (size,) = database.execute("SELECT pg_database_size(current_database())").fetchone()
        return {
            "kind": self.kind,
            "server": database.info.parameter_status("server_version").split()[0],
            "bytes": size,
            "tables": {
                name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608  quoted by TABLES
                for name in names
            },
            "connection": self.parameters(password=""),
            "password": database.info.password,
        }

    def inspect(self, name: str = "") -> Facts:
        """What the database is, or another one of this server."""
        with self.connect(name) as database:
            return self.facts(database)

    @contextlib.contextmanager
    def exported(self) -> Iterator[tuple[Facts, Path | None]]:
        """What the database is at one moment, which pg_dump sees by the name of the snapshot."""
        with self.connect() as database, database.transaction():
            database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (snapshot,) = database.execute("SELECT pg_export_snapshot()").fetchone()
            yield self.facts(database) | {"snapshot": snapshot}, None

    def prepare(self) -> None:
        """Make the database that pg_restore fills."""
        with self.connect() as database:
            database.execute(f'CREATE DATABASE "{self.staged}" TEMPLATE template0')

    def swap(self, time: str) -> str:
        """Give the restored database the name, and the one before a new name: both or none."""
        before = f"{self.name}_before_{time}"
        with self.connect() as database:
            is_empty = not database.execute(TABLES).fetchall()
        with self.connect("postgres") as database:
            database.execute(CONNECTIONS, [[self.name, self.staged]])
            with database.transaction():
                database.execute(f'ALTER DATABASE "{self.name}" RENAME TO "{before}"')
                database.execute(f'ALTER DATABASE "{self.staged}" RENAME TO "{self.name}"')
            if is_empty:
                database.execute(f'DROP DATABASE "{before}"')
        return "" if is_empty else before

    def discard(self) -> None:
        """Remove the database that pg_restore filled."""
        with self.connect("postgres") as database:
            database.execute(f'DROP DATABASE IF EXISTS "{self.staged}" WITH (FORCE)')


def current_database() -> SQLite | PostgreSQL:
    """The database of Django's settings."""
    from django.db import connection

    kind = SQLite if connection.vendor == "sqlite" else PostgreSQL
    return kind(connection.settings_dict)


def data_directory() -> Path:
    """Where Django keeps its files."""
    from django.conf import settings

    return Path(settings.DATA_DIR)


def sync(path: Path) -> None:
    """Let a file or a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def say(facts: Facts) -> None:
    """Print for deploy/backup.py."""
    sys.stdout.buffer.write(json.dumps(facts).encode() + b"\n")
    sys.stdout.buffer.flush()


def saved_files(database: SQLite | PostgreSQL) -> Iterator[tuple[str, Path]]:
    """Each file and directory that a backup contains, with its name there."""
    data = data_directory()
    of_database = [database.path, *database.companions] if isinstance(database, SQLite) else []
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data)
        top = name.parts[0]
        if top not in NOT_SAVED and not top.startswith((".", KEPT)) and path not in of_database:
            yield f"data/{name}", path


def export(database: SQLite | PostgreSQL) -> None:
    """Print what the database is, wait until pg_dump has run, then write an archive."""
    with database.exported() as (facts, copy):
        say(facts)
        if not sys.stdin.buffer.readline():
            sys.exit("deploy/backup.py has ended")
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.GNU_FORMAT) as archive:
            if copy:
                archive.add(copy, "database.sqlite3")
            # After the database, so that each file that a row names is there.
            for name, path in saved_files(database):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    if path.is_symlink() or path.is_dir():
                        archive.add(path, name, recursive=False)
                    elif path.is_file():
                        with path.open("rb") as file:
                            archive.addfile(archive.gettarinfo(path, name, file), file)


def discard(database: SQLite | PostgreSQL) -> None:
    """Remove what was prepared."""
    shutil.rmtree(data_directory() / ".restore", ignore_errors=True)
    database.discard()


def stage(database: SQLite | PostgreSQL) -> Facts:
    """Write the files of the archive next to those that are in use; what the new database is."""
    discard(database)
    staged = data_directory() / ".restore"
    staged.mkdir(0o700, parents=True)
    manifest: Facts = {}
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            if member.name == "manifest.json":
                manifest = json.load(archive.extractfile(member))  # type: ignore[arg-type]
            elif member.name == "database.sqlite3" and isinstance(database, SQLite):
                database.staged.touch(0o600)
                with database.staged.open("wb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file, 1024 * 1024)  # type: ignore[arg-type]
            elif member.name.startswith("data/"):
                archive.extract(member, staged, filter="data")
    if not manifest:
        sys.exit("deploy/backup.py has ended")
    if manifest["database"]["kind"] != database.kind:
        sys.exit(f"the backup is of {manifest['database']['kind']}, but Django uses {database.kind}")
    if isinstance(database, SQLite):
        facts = database.inspect(database.staged)
        sync(database.staged)
    else:
        database.prepare()
        with database.connect() as connection:
            facts = database.facts(connection) | {"staged": database.staged}
    os.sync()
    return facts


def swap(database: SQLite | PostgreSQL, time: str) -> Facts:
    """Put what was prepared in place; what was there before is kept."""
    before = database.swap(time)
    data = data_directory()
    staged, kept = data / ".restore/data", data / f"{KEPT}{time}"
    for path in sorted(staged.iterdir()) if staged.exists() else []:
        if (data / path.name).exists():
            kept.mkdir(0o700, exist_ok=True)
            (data / path.name).rename(kept / path.name)
        path.rename(data / path.name)
    shutil.rmtree(data / ".restore", ignore_errors=True)
    sync(data)
    return {"kept": " and ".join(sorted({before, str(kept) if kept.exists() else ""} - {""}))}


def attempt(database: SQLite | PostgreSQL) -> Facts:
    """Restore into an empty place, and bring the database to the state that the code needs."""
    from django.core.management import call_command

    if isinstance(database, SQLite):
        stage(database)
        swap(database, "")
    facts = database.inspect()
    try:
        call_command("migrate", "--check", stdout=sys.stderr)
        facts["migrated"] = False
    except SystemExit:
        call_command("migrate", "--noinput", stdout=sys.stderr)
        facts["migrated"] = True
    return facts


def record(seconds: str) -> None:
    """Write down when the newest backup was made that could be restored."""
    draft = data_directory() / ".backup_time"
    draft.write_text(f"{seconds}\n", encoding="ascii")
    draft.replace(data_directory() / "backup_time")


def main(command: str, *arguments: str) -> None:
    """Run a command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS)
    os.umask(0o077)
    import django
    from django.core.management import call_command

    django.setup()
    database = current_database()
    if command == "export":
        export(database)
    elif command == "inspect":
        say(database.inspect(*arguments))
    elif command == "stage":
        say(stage(database))
    elif command == "swap":
        say(swap(database, *arguments))
    elif command == "discard":
        discard(database)
    elif command == "migrate":
        call_command("migrate", "--noinput")
    elif command == "try":
        say(attempt(database))
    elif command == "record":
        record(*arguments)
    else:
        sys.exit(f"unknown command {command!r}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001  whatever it is, deploy/backup.py prints one line
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
