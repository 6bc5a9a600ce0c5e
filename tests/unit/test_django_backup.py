"""A backup of Django is whole or there is none, and what is restored is what was saved."""

import io
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from deploy import backup
from tests.support.commands import ROOT, poll, run

COMMAND = (sys.executable, "-m", "deploy.backup", "--runtime", "process")
MANIFEST = {"project": "p", "database": {"kind": "sqlite", "bytes": 5, "tables": {"a": 2}}}


class Site:
    """A data directory of Django with a database, and a directory for its backups."""

    def __init__(self, directory: Path, name: str = "site") -> None:
        self.data, self.backups = directory / name, directory / "backups"
        self.environ = os.environ | {"DATA_DIR": str(self.data), "BACKUP_DIR": str(self.backups)}

    def write(self, message: str) -> None:
        """Add an entry to the guestbook."""
        with closing(sqlite3.connect(self.data / "db.sqlite3", isolation_level=None)) as database:
            columns = "INSERT INTO guestbook_entry (author, message, created) VALUES ('a', ?, '2026-01-01')"
            database.execute(columns, [message])

    def messages(self, path: Path | None = None) -> list[str]:
        """The messages of the guestbook."""
        with closing(sqlite3.connect(path or self.data / "db.sqlite3")) as database:
            return [message for (message,) in database.execute("SELECT message FROM guestbook_entry")]

    def call(self, *arguments: str | Path, expect: int = 0, **options: object) -> str:
        """The output of deploy/backup.py."""
        return run(*COMMAND, *arguments, env=self.environ, expect=expect, **options)

    def files(self) -> list[str]:
        """What is in the directory of the backups, without the lock."""
        return sorted(path.name for path in self.backups.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with one entry, an upload and a key."""
    site = Site(tmp_path_factory.mktemp("data"))
    (site.data / "media").mkdir(parents=True)
    (site.data / "media/ü x.txt").write_text("uploaded")
    (site.data / "secret_key").write_text("a key")
    run(sys.executable, "-m", "wsgi_app.django_site", "migrate", "--verbosity", "0", env=site.environ)
    site.write("first")
    return site.data


@pytest.fixture
def site(data: Path, tmp_path: Path) -> Site:
    """A copy of it."""
    site = Site(tmp_path)
    shutil.copytree(data, site.data)
    return site


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small backup."""
    path = tmp_path / "p-20260101T000000Z.tar"
    with path.open("w+b") as output:
        writer = backup.Writer(output)
        writer.add_file("database.sqlite3", io.BytesIO(b"12345"))
        writer.add_file("env/.env", io.BytesIO(b"A=1\n" * 500))
        writer.finish(MANIFEST)
    return path


def test_tar_reads_a_backup(file: Path) -> None:
    """The names and the content are what was added, and the manifest is the last member."""
    assert run("tar", "--list", "--file", file).split() == ["database.sqlite3", "env/.env", "manifest.json"]
    assert run("tar", "--extract", "--to-stdout", "--file", file, "database.sqlite3") == "12345"
    assert backup.verify(file)["database"] == MANIFEST["database"]


@pytest.mark.parametrize("length", [0, 100, 512, 515, 1024, 2500, 3600, 4200])
def test_a_truncated_backup_is_refused(file: Path, length: int) -> None:
    """At whatever place it ends."""
    assert length < file.stat().st_size - 1024
    os.truncate(file, length)
    with pytest.raises(SystemExit, match="not a whole backup") as error:
        backup.verify(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [3, 514, 1030, 1600, 3600, 4300])
def test_a_damaged_backup_is_refused(file: Path, place: int) -> None:
    """One changed byte is enough: in a name, in a part, or in the manifest."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(SystemExit, match=r"damaged|not a whole backup") as error:
        backup.verify(file)
    assert "\n" not in str(error.value)


def test_the_newest_backups_stay_and_the_one_that_was_restored(tmp_path: Path) -> None:
    """Files of other projects and of other programs stay, too."""
    names = [f"p-2026010{day}T000000Z.tar" for day in range(1, 7)]
    others = ["p-q-20260101T000000Z.tar", "p.tar", "notes"]
    for name in names + others:
        (tmp_path / name).touch()
    directory = backup.Directory(tmp_path, "p", 2)
    directory.note_restored(tmp_path / names[1])
    directory.rotate()
    assert [path.name for path in directory.backups()] == [names[1], *names[-2:]]
    assert {path.name for path in tmp_path.iterdir()} >= set(others)
    assert names[1] in directory.age()


def test_a_site_is_the_same_after_a_restore(site: Site, tmp_path: Path) -> None:
    """Database, uploads and key; what is not saved again, such as the static files, is missing."""
    (site.data / "static").mkdir()
    output = site.call("backup")
    (file,) = site.backups.glob("*.tar")
    assert str(file) in output
    assert "no backup has been restored yet" in output
    assert (site.backups.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert "is 0.0 hours old" in site.call("restore-test")
    assert int((site.data / "backup_time").read_text()) == backup.made(file)

    other = Site(tmp_path, "other")
    other.call("restore", file)
    assert other.messages() == ["first"]
    assert (other.data / "media/ü x.txt").read_text() == "uploaded"
    assert (other.data / "secret_key").read_text() == "a key"
    assert sorted(path.name for path in other.data.iterdir()) == ["db.sqlite3", "media", "secret_key"]


def test_a_restore_replaces_nothing_unless_it_is_told_to(site: Site) -> None:
    """With FORCE=1 what was there before is kept; a backup that does not fit changes nothing."""
    site.call("backup")
    (file,) = site.backups.glob("*.tar")
    site.write("second")
    assert "FORCE=1" in site.call("restore", file, expect=1).splitlines()[-1]
    assert site.messages() == ["first", "second"]

    # A part is missing, but the file is whole.
    short = site.backups / "short.tar"
    with short.open("w+b") as output:
        backup.Writer(output).finish(backup.verify(file))
    site.call("--force", "restore", short, expect=1)
    assert site.messages() == ["first", "second"]

    output = site.call("--force", "restore", file)
    (kept,) = site.data.glob("before-*")
    assert f"kept: {kept}" in output
    assert site.messages() == ["first"]
    assert site.messages(kept / "db.sqlite3") == ["first", "second"]
    assert (kept / "media/ü x.txt").exists()


def test_a_backup_with_other_rows_is_not_good(site: Site) -> None:
    """restore-test compares the rows with those that were counted when the backup was made."""
    site.call("backup")
    (file,) = site.backups.glob("*.tar")
    manifest = backup.verify(file)
    manifest["database"]["tables"]["guestbook_entry"] = 2
    with file.open("w+b") as output, (site.data / "db.sqlite3").open("rb") as database:
        writer = backup.Writer(output)
        writer.add_file("database.sqlite3", database)
        writer.finish(manifest)
    output = site.call("restore-test", expect=1)
    assert output.splitlines() == ["guestbook_entry: 1 rows restored, 2 saved"]
    assert not (site.data / "backup_time").exists()


@pytest.mark.slow
def test_a_damaged_database_is_not_saved(site: Site) -> None:
    """The line names the file, and there is no backup."""
    path = site.data / "db.sqlite3"
    query = "SELECT rootpage FROM sqlite_schema WHERE type = 'index' AND sql LIKE '%(\"created\")'"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        ((page,),) = database.execute(query)
    # The rows are all there, but an index has another value.
    content = path.read_bytes()
    start, end = 4096 * (page - 1), 4096 * page
    changed = content[start:end].replace(b"2026-01-01", b"2027-01-01")
    path.write_bytes(content[:start] + changed + content[end:])
    output = site.call("backup", expect=1)
    assert "the database is damaged" in output
    assert len(output.splitlines()) == 1, output
    assert site.files() == []


@pytest.mark.slow
def test_a_full_disk_leaves_no_file(site: Site) -> None:
    """Here the kernel allows files of 64 KiB."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    output = site.call("backup", expect=1, preexec_fn=limit)
    assert len(output.splitlines()) == 1, output
    assert site.files() == []
    assert [path.name for path in site.data.glob(".*")] == []


def test_two_at_once_are_one(site: Site) -> None:
    """The second one is refused."""
    backup.Directory(site.backups, ROOT.name, 1).lock()
    output = site.call("backup", expect=1)
    assert output == f"{site.backups}: another backup or restore of {ROOT.name} is running\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_backup_leaves_no_half_file(site: Site, number: int) -> None:
    """At whatever moment the signal arrives; the next backup removes what SIGKILL has left."""
    # Large enough for several writes.
    (site.data / "media/large").write_bytes(os.urandom(20_000_000))
    started = time.monotonic()
    site.call("backup")
    duration = time.monotonic() - started
    line = f"{signal.Signals(number).name}: no backup was made\n"
    for part in range(3):
        before = site.files()
        with subprocess.Popen([*COMMAND, "backup"], cwd=ROOT, env=site.environ, stderr=-1) as process:
            poll(lambda before=before: site.files() != before)
            time.sleep(duration * part / 8)
            process.send_signal(number)
            errors = process.communicate()[1].decode()
        if process.returncode and number != signal.SIGKILL:
            assert errors == line
        for file in site.backups.glob("*.tar"):
            backup.verify(file)
    site.call("backup")
    assert [name for name in site.files() if name.startswith(".")] == []
    # The other process of a killed backup may still be ending.
    poll(lambda: [path.name for path in site.data.glob(".*")] == [])


@pytest.mark.slow
def test_a_killed_restore_loses_nothing(site: Site) -> None:
    """At whatever moment: the database is the old one or the new one, and the next restore succeeds."""
    site.call("backup")
    (file,) = site.backups.glob("*.tar")
    site.write("second")
    command = (*COMMAND, "--force", "restore", file)
    started = time.monotonic()
    site.call("--force", "restore", file)
    duration = time.monotonic() - started
    for part in range(1, 5):
        if site.messages() == ["first"]:
            site.write("second")
        with subprocess.Popen(command, cwd=ROOT, env=site.environ, stdout=-3) as process:
            time.sleep(duration * part / 5)
            process.kill()
        assert site.messages() in (["first"], ["first", "second"])
        assert (site.data / "secret_key").read_text() == "a key"
    site.call("--force", "restore", file)
    assert site.messages() == ["first"]
    assert any("second" in site.messages(kept) for kept in site.data.glob("before-*/db.sqlite3"))
