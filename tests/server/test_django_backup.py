"""Backups of a PostgreSQL that is not ours to stop, in process mode."""

import io
import os
import signal
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy import backup
from tests.support.commands import poll, run
from tests.support.postgres import Postgres

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", "deploy.backup", "--runtime", "process")
INSERT = "INSERT INTO guestbook_entry (author, message, created) VALUES ('a', %s, now())"


class Site:
    """Django's tables in a database of their own, and a directory for its backups."""

    def __init__(self, postgres: Postgres, directory: Path) -> None:
        self.backups = directory / "backups"
        self.url = postgres.url.replace("/postgres", "/site")
        self.environ = os.environ | {
            "DATABASE_URL": self.url,
            "DATA_DIR": str(directory / "data"),
            "BACKUP_DIR": str(self.backups),
        }

    def call(self, *arguments: str | Path, expect: int = 0) -> str:
        """The output of deploy/backup.py."""
        return run(*COMMAND, *arguments, env=self.environ, expect=expect)

    def query(self, statement: str, *values: str, database: str = "site") -> list:
        """What a statement returns, if it returns rows."""
        with psycopg.connect(self.url.replace("/site", f"/{database}"), autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return [row[0] for row in cursor] if cursor.description else []

    def messages(self, database: str = "site") -> list[str]:
        """The messages of the guestbook."""
        return self.query("SELECT message FROM guestbook_entry ORDER BY id", database=database)

    def databases(self) -> list[str]:
        """The names of the databases, without those of every server."""
        return self.query("SELECT datname FROM pg_database WHERE datname LIKE 'site%%' ORDER BY 1 LIMIT 9")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server."""
    with Postgres() as server:
        poll(lambda: answers(server))
        yield server


def answers(server: Postgres) -> bool:
    """Whether it does more than listen."""
    try:
        psycopg.connect(server.url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def site(postgres: Postgres, tmp_path: Path) -> Iterator[Site]:
    """A site with one entry."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE site")
    site = Site(postgres, tmp_path)
    run(sys.executable, "-m", "wsgi_app.django_site", "migrate", "--verbosity", "0", env=site.environ)
    site.query(INSERT, "first")
    yield site
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for name in [name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()]:
            if name.startswith("site"):
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_rows_and_dump_are_of_one_moment(site: Site) -> None:
    """While rows are written all the time, a restored dump has the number that was counted."""
    done = threading.Event()

    def write() -> None:
        with psycopg.connect(site.url, autocommit=True) as connection:
            while not done.is_set():
                connection.execute(INSERT, ["more"])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        site.call("backup")
    finally:
        done.set()
        writer.join()
    (file,) = site.backups.glob("*.tar")
    assert site.url.split(":")[2].split("@")[0].replace("%20", " ") not in file.read_bytes().decode("latin-1")
    count = backup.verify(file)["database"]["tables"]["public.guestbook_entry"]
    assert 0 < count < len(site.messages())

    output = site.call("--force", "restore", file)
    assert len(site.messages()) == count
    (kept,) = [name for name in site.databases() if "_before_" in name]
    assert kept in output
    assert len(site.messages(kept)) > count
    assert site.databases() == ["site", kept]


def test_a_restore_that_fails_changes_nothing(site: Site) -> None:
    """A dump that ends too early: one line, the database as it was, and no other one."""
    site.call("backup")
    (file,) = site.backups.glob("*.tar")
    assert "there is a database already" in site.call("restore", file, expect=1)
    manifest = backup.verify(file)
    with tarfile.open(file) as archive:
        dump = archive.extractfile("database.dump").read()
    with file.open("w+b") as output:
        writer = backup.Writer(output)
        writer.add_file("database.dump", io.BytesIO(dump[: len(dump) // 2]))
        writer.finish(manifest)
    site.query(INSERT, "second")
    output = site.call("--force", "restore", file, expect=1)
    assert output.startswith("pg_restore: error: "), output
    assert len(output.splitlines()) == 1, output
    assert site.messages() == ["first", "second"]
    assert site.databases() == ["site"]


def test_a_server_that_is_away_is_one_line(site: Site, postgres: Postgres) -> None:
    """No backup, and no traceback."""
    postgres.stop(signal.SIGINT)
    try:
        output = site.call("backup", expect=1)
    finally:
        postgres.start()
    assert "connection" in output.lower()
    assert len(output.splitlines()) == 1, output
    poll(lambda: answers(postgres))
    assert site.messages() == ["first"]
    assert [*site.backups.glob("*.tar")] == []
