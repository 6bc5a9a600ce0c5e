"""An application that opens a connection when it is imported is refused before workers would share it."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.servers import Server

APP = """
import os, socket, sqlite3

kind, address = os.environ["DATABASE"].split("=")
if kind == "unix":
    database = socket.socket(socket.AF_UNIX)
    database.connect(address)
elif kind == "tcp":
    database = socket.create_connection(("127.0.0.1", int(address)))
elif kind == "udp":
    database = socket.socket(type=socket.SOCK_DGRAM)
    database.connect(("127.0.0.1", int(address)))
elif kind == "pair":
    database = socket.socketpair()
elif kind in ("sqlite", "closed"):
    database = sqlite3.connect(address)
    database.execute("CREATE TABLE IF NOT EXISTS visit (day TEXT)")
    if kind == "closed":
        database.close()
listening = socket.create_server(("127.0.0.1", 0))

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""


@pytest.fixture
def database() -> Iterator[int]:
    """The port of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an application that connects when it is imported."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def refused(folder: Path, database: str) -> str:
    """What the start says, beside the ordinary lines."""
    with Server("serving.gunicorn", "app:app", PYTHONPATH=str(folder), DATABASE=database) as server:
        assert server.exit_code() == 1, server.log()
        assert "Booting worker" not in server.log()
        (line,) = [text for text in server.log().splitlines() if " INFO " not in text]
        return line


def test_a_shared_connection_is_refused(folder: Path, database: int) -> None:
    """One line names the peer and the way out, and no worker was forked."""
    line = refused(folder, f"tcp={database}")
    assert f"the application connects to 127.0.0.1:{database} when it is imported" in line
    assert "PRELOAD=off (in .env.SERVICE)" in line


def test_a_shared_sqlite_database_is_refused(folder: Path) -> None:
    """As `db.create_all()` leaves one in the pool of SQLAlchemy; a closed one is no reason."""
    path = folder / "site.db"
    assert f"connects to {path} when" in refused(folder, f"sqlite={path}")
    with Server("serving.gunicorn", "app:app", PYTHONPATH=str(folder), DATABASE=f"closed={path}") as server:
        server.wait("/")


def test_a_shared_connection_to_a_unix_socket_is_refused(folder: Path) -> None:
    """A database on the same machine can have one."""
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert f"connects to {path} when" in refused(folder, f"unix={path}")


@pytest.mark.parametrize("preload", ["off", "no"])
def test_preload_off_is_the_way_out(folder: Path, database: int, preload: str) -> None:
    """Each worker loads the application, with a connection of its own."""
    with Server(
        "serving.gunicorn",
        "app:app",
        PYTHONPATH=str(folder),
        DATABASE=f"tcp={database}",
        PRELOAD=preload,
        WEB_CONCURRENCY="2",
    ) as server:
        server.wait("/")
        assert httpx2.get(server.url, trust_env=False).text == "ok"


@pytest.mark.parametrize("harmless", ["udp", "pair", "none"])
def test_what_workers_may_share_is_no_reason(folder: Path, database: int, harmless: str) -> None:
    """Datagrams (a log), a pair of sockets (an event loop), a socket that only listens."""
    with Server(
        "serving.gunicorn", "app:app", PYTHONPATH=str(folder), DATABASE=f"{harmless}={database}"
    ) as server:
        server.wait("/")


def test_a_wrong_word_is_refused(folder: Path) -> None:
    """As every other variable."""
    with Server("serving.gunicorn", "app:app", PYTHONPATH=str(folder), PRELOAD="maybe") as server:
        assert server.exit_code() == 1
        assert server.log().startswith("PRELOAD='maybe': must be one of 1, true, yes, on, 0, false, no, off")
