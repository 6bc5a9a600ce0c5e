"""Django with a real PostgreSQL that stops answering in the middle."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import poll, run
from tests.support.postgres import Postgres
from tests.support.servers import Server

COMMAND = ("serving.gunicorn", "--workers", "1", "wsgi_app.django_site.wsgi")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with the application's tables."""
    with Postgres() as server:
        environ = os.environ | {"DATABASE_URL": server.url, "DJANGO_SECRET_KEY": "x"}
        run(sys.executable, "-m", "wsgi_app.django_site", "migrate", env=environ)
        yield server


def ask(server: Server, path: str, timeout: float) -> int:
    """The status, on a connection of its own; 0 without an answer in time."""
    try:
        return httpx2.get(server.url + path, trust_env=False, timeout=timeout).status_code
    except httpx2.ReadTimeout:
        return 0


def test_a_database_that_stops_answering_takes_only_the_threads_that_ask_it(
    postgres: Postgres, tmp_path: Path
) -> None:
    """/livez and a page without a query go on, /readyz says 503; all of it is well again afterwards."""
    environ = {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path), "DJANGO_DEBUG": "on"}
    with Server(*COMMAND, **environ).wait("/readyz") as server:
        for _ in range(4):
            assert ask(server, "/", 5) == 200
        with postgres.paused():
            time.sleep(1.1)  # the last result of the checks is too old
            waiting = [threading.Thread(target=ask, args=(server, path, 20)) for path in ("/", "/readyz")]
            for thread in waiting:
                thread.start()
            time.sleep(0.3)
            poll(lambda: "not ready: database: no answer within 3 s" in server.log(), 6, server.log)
            for _ in range(5):
                assert ask(server, "/readyz", 2) == 503
                assert ask(server, "/livez", 2) == 200
                assert ask(server, "/missing", 2) == 404
        for thread in waiting:
            thread.join()
        poll(lambda: ask(server, "/readyz", 5) == 200, 5, server.log)
        assert {ask(server, "/", 5) for _ in range(6)} == {200}


def test_the_address_can_limit_the_time_of_a_query(postgres: Postgres) -> None:
    """Not by default: the limit would end migrations, and some connection poolers refuse the parameter."""
    code = (
        "import django; django.setup()\n"
        "from django.db import connection\n"
        "connection.cursor().execute('SELECT pg_sleep(60)')\n"
    )
    environ = os.environ | {
        "DATABASE_URL": postgres.url + "?options=-c%20statement_timeout%3D500",
        "DJANGO_SETTINGS_MODULE": "wsgi_app.django_site.settings",
        "DJANGO_SECRET_KEY": "x",
    }
    begun = time.monotonic()
    said = run(sys.executable, "-c", code, env=environ, expect=1)
    assert "canceling statement due to statement timeout" in said
    assert time.monotonic() - begun < 15
