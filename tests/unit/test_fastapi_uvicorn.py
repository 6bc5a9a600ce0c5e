"""The parts of serving/uvicorn/ and asgi_app/ that need no server."""

import importlib
from typing import override

import pytest
from uvicorn.server import Server

from asgi_app import main as application
from serving import settings
from serving.uvicorn import launcher, supervisor, supported, websocket


class Ours(Server):
    """Overrides a method that Uvicorn has, and one that it has not."""

    @override
    def handle_exit(self, sig, frame) -> None:
        """Exists in 0.54."""

    @override
    def renamed(self) -> None:  # type: ignore[misc]
        """Does not exist."""


def test_a_missing_part_of_uvicorn_is_named() -> None:
    """An override without an original is an error at the start that names both versions."""
    with pytest.raises(
        settings.SettingError, match=r"has no uvicorn.server.Server.renamed; .* Uvicorn 0\.54"
    ):
        supported.check_overrides(Ours)


@pytest.mark.parametrize(
    ("owner", "name", "ours"),
    [
        (supervisor.Server, "on_tick", supervisor.ObservedServer),
        (supervisor.Process, "pong", supervisor.WatchedProcess),
        (supervisor.Process, "server", supervisor.WatchedProcess),
        (supervisor.Multiprocess, "restart_all", supervisor.Supervisor),
        (supervisor.StatReload, "startup", supervisor.StatReloader),
        (websocket.WebSocketsSansIOProtocol, "send_receive_event_to_app", websocket.WebSocketProtocol),
    ],
)
def test_every_override_is_looked_up(
    owner: type, name: str, ours: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each class that overrides internals is refused when Uvicorn renames one of them."""
    supported.check_overrides(ours)
    # A base class of the owner may have the name as well.
    for base in owner.__mro__:
        if name in vars(base):
            monkeypatch.delattr(base, name)
    with pytest.raises(settings.SettingError, match=name):
        supported.check_overrides(ours)


def test_the_options_are_translated_as_uvicorn_does() -> None:
    """One function for the launcher, the trial and Gunicorn's worker."""
    options = {"app": "a:b", "headers": ["A:1:2"], "reload_dirs": (), "app_dir": "", "log_config": None}
    found = launcher.config_options(options)
    assert found.pop("log_config")["version"] == 1
    assert found == {"app": "a:b", "headers": [("A", "1:2")], "reload_dirs": None}


@pytest.mark.parametrize(("variable", "seconds"), [("", 20), ("7", 7)])
def test_the_request_timeout_overrides_the_file(
    variable: str, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For both servers, because both read it through one function."""
    monkeypatch.setenv("REQUEST_TIMEOUT", variable)
    values = launcher.with_environment({"timeout_graceful_shutdown": 20})
    assert values == {"timeout_graceful_shutdown": seconds}


@pytest.mark.parametrize(
    "value",
    [
        "app.example.com",
        "*",
        "https://",
        "https://a/b",
        "wss://a",
        "https://a b",
        "https://a?b",
        "null",
        "https://*.a.b",
    ],
)
def test_a_wrong_origin_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, with one line that names the variable and the value."""
    monkeypatch.setenv("WEBSOCKET_ORIGINS", value)
    with pytest.raises(settings.SettingError, match="WEBSOCKET_ORIGINS"):
        importlib.reload(application)
