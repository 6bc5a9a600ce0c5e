"""A clone may lie in any folder: with blanks and # in its name, a long one, and for its owner alone."""

import os
from pathlib import Path

import pytest

from deploy.process.__main__ import LONGEST_SOCKET_PATH, SOCKET
from tests.support.commands import ROOT, answers, run
from tests.support.containers import Clone
from tests.support.processes import Processes

pytestmark = pytest.mark.slow


def test_containers_of_any_folder(engine: None, tmp_path: Path) -> None:
    """`make up` serves, and what `make manage` writes is in the folder."""
    stack = Clone(tmp_path / "my app #1" / ("x" * 90))
    stack.environ |= {"COMPOSE_PROJECT_NAME": stack.project}
    # As after `umask 077; git clone`.
    for path in stack.directory.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    options = {"cwd": stack.directory, "env": stack.environ}
    try:
        run("make", "up", "RUNTIME=docker", **options)
        for url in stack.urls.values():
            assert answers(url)
        if "django" in stack.urls:
            models = stack.directory / "wsgi_app/django_site/models.py"
            field = '    mood = models.CharField(max_length=20, db_default="")\n'
            models.write_text(models.read_text().replace("\n    class Meta", f"{field}\n    class Meta"))
            run("make", "manage", "ARGS=makemigrations", "RUNTIME=docker", **options)
            assert "mood" in (models.parent / "migrations/0002_entry_mood.py").read_text()
    finally:
        stack.down()


def test_processes_of_any_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The longest one that a socket's path allows."""
    directory, name = tmp_path_factory.mktemp("p"), "my app #1"
    spare = LONGEST_SOCKET_PATH - len(os.fsencode(directory / name / SOCKET.relative_to(ROOT)))
    stack = Processes(directory / (name + "x" * spare))
    try:
        stack.up()
        for url in stack.urls.values():
            assert answers(url)
    finally:
        stack.down()
