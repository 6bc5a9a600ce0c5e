"""What is changed inside Gunicorn is looked up first, and listed."""

import re
import socket

import gunicorn.workers.base
import pytest
from gunicorn.workers import gthread

from serving import settings
from serving.gunicorn import internals
from tests.support.commands import ROOT


def test_a_renamed_attribute_stops_the_start() -> None:
    """With one line that names it and the version, instead of silently working without the change."""
    with pytest.raises(settings.SettingError, match=r"^Gunicorn [\d.]+ has no ThreadWorker\.renamed, which"):
        internals.require(gthread.ThreadWorker, "accept", "renamed")


def test_a_worker_checks_what_only_an_object_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arbiter makes a worker before it forks, so the start ends there."""
    from serving.gunicorn.worker import Worker

    def without_attributes(self: object, *arguments: object, **options: object) -> None:
        """A release in which everything is called differently."""

    monkeypatch.setattr(gthread.ThreadWorker, "__init__", without_attributes)
    with pytest.raises(settings.SettingError, match=r"Worker\.keepalived_conns"):
        Worker()


def test_errors_are_identified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the configuration is read again."""
    original = gunicorn.workers.base.Worker.handle_error
    monkeypatch.setattr(gunicorn.workers.base.Worker, "handle_error", original)
    internals.identify_errors()
    first = gunicorn.workers.base.Worker.handle_error
    internals.identify_errors()
    assert first is gunicorn.workers.base.Worker.handle_error is not original


def test_connections_are_those_to_others() -> None:
    """A stream to a named peer counts; a listening socket and a pair do not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        before = internals.connections()
        port = listener.getsockname()[1]
        pair = socket.socketpair()
        with socket.create_connection(("127.0.0.1", port)):
            assert sorted(internals.connections()) == sorted([*before, f"127.0.0.1:{port}"])
        for one in pair:
            one.close()
    assert internals.address(("::1", 5432, 0, 0)) == "[::1]:5432"
    assert internals.address(b"\0abstract") == "\0abstract"


def test_the_dependency_has_an_upper_bound() -> None:
    """What is overridden was checked with these releases only."""
    groups = re.findall(r'"(gunicorn[^"]*)"', (ROOT / "pyproject.toml").read_text())
    requirements = [group for group in groups if "=" in group]
    assert requirements
    assert {"gunicorn>=27.0.1,<27.1"} == set(requirements)
