"""Django with a real PostgreSQL that stops answering in the middle."""

import os
import re
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

# services/ shows that Django works with PostgreSQL; these are the faults.
pytestmark = pytest.mark.slow

COMMAND = ("serving.gunicorn", "--workers", "1", "wsgi_app.django_site.wsgi")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server with the application's tables; and the static files that its pages name."""
    with Postgres() as server:
        environ = os.environ | {"DATABASE_URL": server.url, "DJANGO_SECRET_KEY": "x"}
        for command in ("migrate", "collectstatic"):
            run(sys.executable, "-m", "wsgi_app.django_site", command, "--noinput", env=environ)
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
    """/livez and a page without a query go on, /readyz says 503; all of it is well again afterwards.

    The server still gets requests.
    """
    environ = {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path)}
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
                assert ask(server, "/readyz?once", 2) == 200
                assert ask(server, "/livez", 2) == 200
                assert ask(server, "/missing", 2) == 404
        for thread in waiting:
            thread.join()
        poll(lambda: ask(server, "/readyz", 5) == 200, 5, server.log)
        assert {ask(server, "/", 5) for _ in range(6)} == {200}


@pytest.mark.slow
def test_a_hung_database_costs_a_503_and_no_thread(postgres: Postgres, tmp_path: Path) -> None:
    """Waiting ends; while the check gets no answer, a request does not wait; then all is well again."""
    environ = {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path), "REQUEST_TIMEOUT": "2"}
    with Server(*COMMAND, "--threads", "4", **environ).wait("/readyz") as server:
        for _ in range(6):
            assert ask(server, "/", 5) == 200
        with postgres.paused():
            statuses: list[int] = []
            # More than there are threads.
            waiting = [
                threading.Thread(target=lambda: statuses.append(ask(server, "/", 30))) for _ in range(8)
            ]
            for thread in waiting:
                thread.start()
            for thread in waiting:
                thread.join()
            assert statuses == [503] * 8

            def refuses() -> bool:
                assert ask(server, "/readyz", 5) == 503
                begun = time.monotonic()
                assert ask(server, "/", 10) == 503
                return time.monotonic() - begun < 1

            poll(refuses, 15, server.log)
            for _ in range(10):
                assert refuses()
                assert ask(server, "/livez", 2) == 200
        poll(lambda: ask(server, "/readyz", 5) == 200, 10, server.log)
        assert {ask(server, "/", 5) for _ in range(6)} == {200}


def test_without_a_check_one_request_at_a_time_asks_a_hung_database(
    postgres: Postgres, tmp_path: Path
) -> None:
    """As in Docker Swarm: the others get their 503 immediately, and static files go on; it recovers."""
    environ = {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path)}
    with Server(*COMMAND, "--threads", "4", **environ).wait("/readyz") as server:
        page = httpx2.get(server.url, trust_env=False).text
        style = re.search(r'href="(/static/\S+\.css)"', page)[1]
        with postgres.paused():
            assert ask(server, "/", 7) == 503
            done = threading.Event()
            waited: list[float] = []

            def visit() -> None:
                while not done.wait(0.02):
                    begun = time.monotonic()
                    assert ask(server, "/", 10) == 503
                    waited.append(time.monotonic() - begun)

            visitors = [threading.Thread(target=visit) for _ in range(6)]
            for visitor in visitors:
                visitor.start()
            try:
                for _ in range(40):
                    assert ask(server, style, 1) == 200
                    time.sleep(0.2)
            finally:
                done.set()
                for visitor in visitors:
                    visitor.join()
            # A connection takes 5 s to fail, and there is a pause of 2 s before the next one.
            assert 1 <= sum(seconds > 1 for seconds in waited) <= 3, waited
        poll(lambda: ask(server, "/", 5) == 200, 5, server.log)
        poll(lambda: {ask(server, "/", 5) for _ in range(6)} == {200}, 5, server.log)


def in_django(code: str, expect: int, **environ: str) -> str:
    """The output of a program that uses Django's connection."""
    program = f"import django; django.setup()\nfrom django.db import connection\n{code}"
    environ |= {"DJANGO_SETTINGS_MODULE": "wsgi_app.django_site.settings", "DJANGO_SECRET_KEY": "x"}
    return run(sys.executable, "-c", program, env=os.environ | environ, expect=expect)


@pytest.mark.parametrize("server", [True, False], ids=["server", "command"])
def test_only_a_server_limits_the_time_of_an_answer(postgres: Postgres, server: bool) -> None:
    """A query of a request ends with REQUEST_TIMEOUT; one of a command takes as long as it needs."""
    code = "import wsgi_app.django_site.wsgi\n" if server else ""
    code += "connection.cursor().execute('SELECT pg_sleep(3)')"
    said = in_django(code, int(server), DATABASE_URL=postgres.url, REQUEST_TIMEOUT="1")
    assert ("django.db.utils.OperationalError: no answer within 1 s" in said) == server


def test_a_connection_that_the_server_ended_is_replaced(postgres: Postgres, tmp_path: Path) -> None:
    """As in a failover: the next request opens a new one."""
    environ = {"DATABASE_URL": postgres.url, "DATA_DIR": str(tmp_path)}
    end = "connection.cursor().execute('SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    end += " WHERE pid <> pg_backend_pid() AND backend_type = \\'client backend\\'')"
    with Server(*COMMAND, **environ).wait("/readyz") as server:
        assert {ask(server, "/", 5) for _ in range(6)} == {200}
        in_django(end, 0, DATABASE_URL=postgres.url)
        assert {ask(server, "/", 5) for _ in range(6)} == {200}


def test_the_address_can_limit_the_time_of_a_query(postgres: Postgres) -> None:
    """Not by default: the limit would end migrations, and some connection poolers refuse the parameter."""
    url = postgres.url + "?options=-c%20statement_timeout%3D500"
    begun = time.monotonic()
    said = in_django("connection.cursor().execute('SELECT pg_sleep(60)')", 1, DATABASE_URL=url)
    assert "canceling statement due to statement timeout" in said
    assert time.monotonic() - begun < 15
