"""Django's `migrate` in a deployment: it waits for PostgreSQL, and only one runs at a time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.commands import poll, run
from tests.support.postgres import Postgres

# Each deployment migrates; these are the details.
pytestmark = pytest.mark.slow

MIGRATE = (sys.executable, "-m", "wsgi_app.django_site", "migrate")
# LOCK in wsgi_app/django_site/management/commands/migrate.py.
LOCK = 0x6D696772617465
HURRY = """
import sys
from wsgi_app.django_site.management.commands import migrate
migrate.SECONDS = 2
sys.argv = ["migrate", "migrate"]
import wsgi_app.django_site.__main__
"""


def start(output: Path, *options: str, **environ: str) -> subprocess.Popen:
    """A migration in the background."""
    with output.open("w") as file:
        return subprocess.Popen([*MIGRATE, *options], env=os.environ | environ, stdout=file, stderr=file)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory):
    """A server of these tests alone."""
    with Postgres() as server:
        yield server


def test_it_waits_for_a_database_that_is_not_up_yet(postgres: Postgres, tmp_path: Path) -> None:
    """One line says so; one that never comes is a failure with one line."""
    environ = {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path)}
    postgres.stop()
    try:
        output = run(sys.executable, "-c", HURRY, env=os.environ | environ, expect=1)
        assert re.search(r"CommandError: the database does not answer within 2 s: connection failed", output)
        assert "Traceback" not in output
        migration = start(tmp_path / "log", **environ)
        poll(lambda: "waiting for the database: connection failed" in (tmp_path / "log").read_text())
    finally:
        postgres.start()
    assert migration.wait(60) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("waiting for the database") == 1


def test_it_logs_json(tmp_path: Path) -> None:
    """As the servers do, also what Django prints."""
    environ = {"DATA_DIR": str(tmp_path), "LOG_FORMAT": "json", "SERVICE": "django"}
    output = run(*MIGRATE, env=os.environ | environ)
    messages = [json.loads(line)["message"] for line in output.splitlines()]
    assert "  Applying guestbook.0001_initial... OK" in messages


@pytest.mark.parametrize("database", ["postgres", "sqlite"])
def test_one_migration_runs_at_a_time(postgres: Postgres, tmp_path: Path, database: str) -> None:
    """Three at the same time, each as a replica could start one: all succeed, and each step runs once."""
    environ = {"DATA_DIR": str(tmp_path)}
    if database == "postgres":
        run(*MIGRATE, "guestbook", "zero", env=os.environ | environ | {"DATABASE_URL": postgres.url})
        environ["DATABASE_URL"] = postgres.url
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    migrations = [start(log, **environ) for log in logs]
    codes = [migration.wait(60) for migration in migrations]
    output = "\n".join(log.read_text() for log in logs)
    assert codes == [0, 0, 0], output
    assert output.count("Applying guestbook.0001_initial... OK") == 1, output


def test_a_check_ends_when_the_running_migration_has(postgres: Postgres, tmp_path: Path) -> None:
    """It waits in no statement, so that the migration can build an index concurrently meanwhile."""
    environ = {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path)}
    run(*MIGRATE, env=os.environ | environ)
    with psycopg.connect(postgres.url, autocommit=True) as migration:
        migration.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        check = start(tmp_path / "log", "--check", **environ)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%advisory%%' AND pid <> %s"
        own = migration.info.backend_pid
        try:
            poll(lambda: migration.execute(waiting, [own]).fetchone()[0] == 1)
            migration.execute("CREATE INDEX CONCURRENTLY built ON django_migrations (name)")
            migration.execute("DROP INDEX built")
            assert check.poll() is None, (tmp_path / "log").read_text()
        except BaseException:
            check.kill()
            check.wait()
            raise
    assert check.wait(20) == 0, (tmp_path / "log").read_text()


def test_a_check_fails_before_a_migration(postgres: Postgres, tmp_path: Path) -> None:
    """1 while the database lacks a migration, 0 when it has all of them, and those of a newer version."""
    environ = os.environ | {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path)}
    run(*MIGRATE, "guestbook", "zero", env=environ)
    run(*MIGRATE, "--check", env=environ, expect=1)
    run(*MIGRATE, env=environ)
    with psycopg.connect(postgres.url, autocommit=True) as database:
        newer = "INSERT INTO django_migrations (app, name, applied) VALUES ('guestbook', '0099_newer', now())"
        database.execute(newer)
        run(*MIGRATE, "--check", env=environ)
        database.execute("DELETE FROM django_migrations WHERE name = '0099_newer'")
