"""Backups of Django in containers: they are tried, they are restored, and nothing half is left."""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import backup
from tests.support.commands import ROOT, run
from tests.support.containers import Clone, Containers

pytestmark = pytest.mark.slow

MODELS = "from wsgi_app.django_site.models import Entry"
SHELL = ("python", "-m", "wsgi_app.django_site", "shell", "--verbosity", "0", "--command")


class Backups:
    """`make backup`, `make restore` and `make restore-test` for the Compose project of a stack."""

    def __init__(self, stack: Containers, directory: Path, folder: Path = ROOT) -> None:
        self.stack, self.directory, self.folder = stack, directory, folder
        self.environ = stack.environ | {
            "COMPOSE_PROJECT_NAME": stack.project,
            "COMPOSE_FILE": f"docker-compose.yml{os.pathsep}{stack.networks}",
            "BACKUP_DIR": str(directory),
            "RUNTIME": "docker",
        }

    def make(self, *arguments: str, expect: int = 0) -> str:
        """The output of `make ARGUMENTS`."""
        return run("make", *arguments, cwd=self.folder, env=self.environ, expect=expect)

    def newest(self) -> Path:
        """The newest backup."""
        return max(self.directory.glob("*.tar"))

    def write(self, message: str) -> None:
        """Add an entry to the guestbook."""
        self.stack.exec("django", *SHELL, f"{MODELS}; Entry.objects.create(author='a', message={message!r})")

    def messages(self) -> str:
        """The messages of the guestbook."""
        return self.stack.exec(
            "django", *SHELL, f"{MODELS}; print(*Entry.objects.values_list('message', flat=True))"
        )


def without_containers(backups: Backups) -> None:
    """Nothing that the commands started is left."""
    names = run(
        "docker", "ps", "--all", "--format", "{{.Names}}", "--filter", f"name={backups.stack.project}-"
    )
    assert [name for name in names.split() if re.search("-(backup|backup-tool|restore-test)$", name)] == []


def test_a_running_stack_is_saved_and_the_backup_tried(containers: Containers, tmp_path: Path) -> None:
    """With the certificates, and without a file of the database that is in use."""
    backups = Backups(containers, tmp_path / "backups")
    backups.make("backup")
    names = run("tar", "--list", "--file", backups.newest()).split()
    assert {"database.sqlite3", "data/secret_key", "manifest.json"} <= set(names)
    assert any(re.fullmatch("edge/caddy/pki/.*/root.key", name) for name in names), names
    assert not any("db.sqlite3" in name or "static/" in name for name in names)
    assert "is 0.0 hours old" in backups.make("restore-test")
    made = containers.exec("django", "cat", "/data/backup_time")
    assert int(made) == backup.made(backups.newest())
    assert (
        backups.make("restore", f"BACKUP={backups.newest()}", expect=2)
        .splitlines()[0]
        .startswith("there is a database already")
    )
    without_containers(backups)


@pytest.fixture(scope="module")
def postgresql(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backups]:
    """Django with PostgreSQL, and one entry in its guestbook."""
    directory = tmp_path_factory.mktemp("postgresql")
    stack = Clone(directory / "repository", COMPOSE_PROFILES="postgres")
    try:
        stack.up("django")
        backups = Backups(stack, directory / "backups", stack.directory)
        backups.write("first")
        yield backups
    finally:
        stack.down()


def test_a_damaged_dump_is_not_good(postgresql: Backups) -> None:
    """The checksums are right, and yet it cannot be restored: restore-test says so in one line."""
    postgresql.make("backup")
    newest = postgresql.newest()
    manifest = backup.verify(newest)
    with tarfile.open(newest) as archive:
        dump = archive.extractfile("database.dump").read()
    damaged = newest.with_name("damaged.tar")
    with damaged.open("w+b") as file:
        writer = backup.Writer(file)
        writer.add_file("database.dump", io.BytesIO(dump[: len(dump) // 2]))
        writer.finish(manifest)
    output = postgresql.make("restore-test", f"BACKUP={damaged}", expect=2)
    assert re.match("pg_restore: error: ", output), output
    assert len(output.splitlines()) == 2, output  # the other one is make's
    damaged.unlink()
    without_containers(postgresql)


def test_postgresql_is_what_it_was(postgresql: Backups) -> None:
    """While Django serves; what was there before stays under another name."""
    postgresql.make("backup")
    assert "restored in" in postgresql.make("restore-test")
    postgresql.write("second")
    output = postgresql.make("restore", f"BACKUP={postgresql.newest()}", "FORCE=1")
    kept = re.search(r"kept: .*(django_before_\w+)", output)[1]
    assert postgresql.messages() == "first\n"
    query = "SELECT message FROM guestbook_entry ORDER BY id"
    psql = ("psql", "--username", "django", "--tuples-only", "--no-align", "--command", query, kept)
    assert postgresql.stack.exec("postgres", *psql).split() == ["first", "second"]
    without_containers(postgresql)


def test_the_data_outlive_the_containers(postgresql: Backups) -> None:
    """`make deploy` leaves the container of PostgreSQL alone, and `docker compose down` its volume."""
    before = postgresql.stack.container("postgres")
    postgresql.make("deploy", "VERSION=1.0")
    assert postgresql.stack.container("postgres") == before
    postgresql.stack.compose("down")
    postgresql.stack.compose("up", "--detach", "--wait", "--no-build", "edge", "django")
    assert postgresql.messages() == "first\n"


def test_a_new_machine_needs_the_backup_and_the_repository(postgresql: Backups, tmp_path: Path) -> None:
    """Another project, without images and volumes: `make restore`, then `make up`."""
    variables = "COMPOSE_PROFILES=postgres\nVERSION=1.0\nPREVIOUS_VERSION=latest\n"
    (postgresql.folder / ".env").write_text(variables)
    postgresql.make("backup")
    stack = Clone(tmp_path / "repository")
    other = Backups(stack, tmp_path / "backups", stack.directory)
    try:
        assert "restored" in other.make("restore", f"BACKUP={postgresql.newest()}")
        assert (stack.directory / ".env").read_text() == variables
        other.make("up")
        assert other.messages() == "first\n"
    finally:
        stack.down()
