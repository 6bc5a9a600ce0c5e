"""`make deploy` reads VERSION from .env as Compose does, changes it alone, and loses nothing of the file."""

import errno
import os
from pathlib import Path

import pytest

from checks.variables import has_compose
from deploy import rollout
from tests.support.commands import lacking

# A .env, its VERSION, and the file with VERSION=2 and PREVIOUS_VERSION=1.0.
FORMS = [
    ("", "", "VERSION=2\nPREVIOUS_VERSION=1.0\n"),
    ("VERSION=1.0", "1.0", "PREVIOUS_VERSION=1.0\nVERSION=2"),
    ("VERSION: 1.0\n", "1.0", "PREVIOUS_VERSION=1.0\nVERSION: 2\n"),
    (" export VERSION = 1.0 # now\r\n", "1.0", "PREVIOUS_VERSION=1.0\r\n export VERSION = 2 # now\r\n"),
    ("VERSION=1.0#x\n", "1.0#x", "PREVIOUS_VERSION=1.0\nVERSION=2\n"),
    ("VERSION='1.0' # x\n", "1.0", "PREVIOUS_VERSION=1.0\nVERSION='2' # x\n"),
    ('VERSION="1.0"\nPREVIOUS_VERSION=0\n', "1.0", 'VERSION="2"\nPREVIOUS_VERSION=1.0\n'),
    ("VERSION=0\nVERSION=1.0\n", "1.0", "PREVIOUS_VERSION=1.0\nVERSION=2\nVERSION=2\n"),
    ("\ufeffVERSION=1.0\n", "1.0", "\ufeffPREVIOUS_VERSION=1.0\nVERSION=2\n"),
    ("KEY='\nVERSION=3\n'\n", "", "VERSION=2\nPREVIOUS_VERSION=1.0\nKEY='\nVERSION=3\n'\n"),
    ('KEY="\nVERSION=3\n\\""\nVERSION=1', "1", 'PREVIOUS_VERSION=1.0\nKEY="\nVERSION=3\n\\""\nVERSION=2'),
    ("# it's\nKEY=it's\nVERSION=1\n", "1", "PREVIOUS_VERSION=1.0\n# it's\nKEY=it's\nVERSION=2\n"),
    ("#VERSION=3\nMY_VERSION=4\n", "", "VERSION=2\nPREVIOUS_VERSION=1.0\n#VERSION=3\nMY_VERSION=4\n"),
    ("VERSION=\n", "", "PREVIOUS_VERSION=1.0\nVERSION=2\n"),
]
CHANGES = {"PREVIOUS_VERSION": "1.0", "VERSION": "2"}


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The .env of a project in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in CHANGES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".env"


def needs_compose() -> None:
    """Skip where there is no Compose to compare with."""
    if not has_compose():
        lacking("no Docker Compose to read the file")


@pytest.mark.parametrize(("text", "version", "changed"), FORMS)
def test_each_form_is_read_and_changed(text: str, version: str, changed: str, env_file: Path) -> None:
    """Compose finds the same version, and the new one; every other character stays."""
    env_file.write_bytes(text.encode())
    file = rollout.EnvFile()
    assert file.get("VERSION") == version
    if has_compose():
        file.check()
        file.check_change(CHANGES)
    assert env_file.read_bytes() == text.encode()
    file.save(CHANGES)
    assert env_file.read_bytes() == changed.encode()
    assert [path.name for path in env_file.parent.iterdir()] == [".env"]


@pytest.mark.parametrize("text", ["B=1\nVERSION=${B}\n", 'VERSION="1\\t0"\n', "VERSION=a$b\n"])
def test_a_form_that_is_read_differently_is_refused(text: str, env_file: Path) -> None:
    """One line that names the variable; the file stays."""
    needs_compose()
    env_file.write_text(text)
    with pytest.raises(SystemExit, match=r"^\.env: VERSION=.*must be one line VERSION=\.\.\. in \.env"):
        rollout.EnvFile().check()
    assert env_file.read_text() == text


def test_a_version_in_another_file_is_refused(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COMPOSE_ENV_FILES: a change of .env would have no effect."""
    needs_compose()
    (env_file.parent / "other.env").write_text("VERSION=3\n")
    monkeypatch.setenv("COMPOSE_ENV_FILES", "other.env")
    with pytest.raises(SystemExit, match="but Compose reads '3'"):
        rollout.EnvFile().check()


def full(_descriptor: int) -> None:
    """A full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_loses_nothing(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays, and the half-written one does not."""
    env_file.write_text("SECRET=1\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit, match="must be writable: No space left on device; nothing was replaced"):
        rollout.EnvFile().check_change(CHANGES)
    with pytest.raises(SystemExit, match="must be writable: No space left on device"):
        rollout.EnvFile().save(CHANGES)
    assert env_file.read_text() == "SECRET=1\n"
    assert [path.name for path in env_file.parent.iterdir()] == [".env"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(env_file: Path) -> None:
    """Before anything is built."""
    env_file.parent.chmod(0o500)
    try:
        with pytest.raises(SystemExit, match="must be writable: Permission denied; nothing was replaced"):
            rollout.EnvFile().check_change(CHANGES)
    finally:
        env_file.parent.chmod(0o700)


def test_what_is_written_meanwhile_stays(env_file: Path) -> None:
    """A deployment takes minutes, in which the file may be edited."""
    env_file.write_text("VERSION=1.0\n")
    file = rollout.EnvFile()
    assert file.get("VERSION") == "1.0"
    env_file.write_text("VERSION=1.0\nNEW=1\n")
    file.save({"VERSION": "2"})
    assert env_file.read_text() == "VERSION=2\nNEW=1\n"
