"""Django: what a stranger sends is one line at most, and the database is where it was told to be."""

import os
import re
import shutil
import socket
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import HOUSEKEEPING, ROOT, poll, run
from tests.support.servers import Server

COMMAND = ("serving.gunicorn", "--workers", "1", "wsgi_app.django_site.wsgi")


@pytest.mark.parametrize(
    ("fields", "headers", "logger"),
    [
        ({}, {"Host": "evil.example"}, "DisallowedHost"),
        ({str(number): "" for number in range(1100)}, {}, "TooManyFieldsSent"),
        ({"message": "x" * 5000}, {}, "RequestDataTooBig"),
    ],
)
def test_a_suspicious_request_is_one_warning(
    fields: dict[str, str], headers: dict[str, str], logger: str, tmp_path: Path
) -> None:
    """400, and neither an error nor a traceback: otherwise anyone could fill the log."""
    with Server(
        *COMMAND, DATA_DIR=str(tmp_path), MAX_BODY="4KiB" if logger[0] == "R" else ""
    ).wait() as server:
        before = len(server.log())
        # With this cookie Django reads the form, to look for the token in it.
        headers |= {"Cookie": f"csrftoken={'x' * 32}"}
        answer = httpx2.post(server.url, data=fields, headers=headers, trust_env=False)
        assert answer.status_code == 400
        poll(lambda: '"POST /" 400' in server.log(), log=server.log)
        said = server.log()[before:]
        warnings = [line for line in said.splitlines() if '"POST /" 400' not in line]
        assert len([line for line in warnings if f"django.security.{logger}: " in line]) == 1, said
        assert len(warnings) <= 2, said
        assert "Traceback" not in said
        assert " ERROR " not in said
        assert all(f"[{answer.headers['x-request-id']}]" in line for line in said.splitlines())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose database has the application's tables."""
    folder = tmp_path_factory.mktemp("data")
    run(sys.executable, "-m", "wsgi_app.django_site", "migrate", env=os.environ | {"DATA_DIR": str(folder)})
    return folder


@pytest.mark.parametrize(
    ("trusted", "origin", "status"),
    [
        ("", "https://app.example.com", 403),
        ("HTTPS://App.example.com:443/", "https://app.example.com", 302),
        ("https://*.example.com", "https://app.example.com", 302),
        ("https://app.example.com", "https://evil.example.com", 403),
        ("https://app.example.com", "http://app.example.com", 403),
    ],
)
def test_a_form_of_a_page_under_another_name(trusted: str, origin: str, status: int, data: Path) -> None:
    """Behind a proxy that rewrites Host, the origin of a page is not the host that Django sees."""
    environ = {"DATA_DIR": str(data), "DJANGO_CSRF_TRUSTED_ORIGINS": trusted}
    token = "x" * 32
    form = {"author": "A", "message": "B", "csrfmiddlewaretoken": token}
    with Server(*COMMAND, **environ).wait() as server:
        for headers, expected in (({"Origin": origin}, status), ({}, 302)):
            headers |= {"Cookie": f"csrftoken={token}"}
            answer = httpx2.post(server.url, data=form, headers=headers, trust_env=False)
            assert answer.status_code == expected


def test_sqlite_lies_in_the_data_directory_whatever_its_name(tmp_path: Path) -> None:
    """A # or ? in a folder's name is no part of the address."""
    folder = tmp_path / "c#app?x=1 %41"
    folder.mkdir()
    run(sys.executable, "-m", "wsgi_app.django_site", "migrate", env={"DATA_DIR": str(folder)})
    assert (folder / "db.sqlite3").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(("query", "seconds"), [("", 5), ("?connect_timeout=2", 2)])
def test_postgresql_has_time_limits(query: str, seconds: int) -> None:
    """Without them a host that does not answer is waited for forever; the address can set others."""
    program = "from wsgi_app.django_site.settings import DATABASES as d; print(d['default']['OPTIONS'])"
    url = f"postgres://user:password@127.0.0.1:5432/name{query}"
    options = run(sys.executable, "-c", program, env={"DATABASE_URL": url, "DJANGO_SECRET_KEY": "x"})
    assert f"'connect_timeout': {seconds}" in options
    assert "'tcp_user_timeout': 10000" in options
    assert "'keepalives_interval': 10" in options


def test_a_hung_database_makes_it_unready_and_takes_no_thread(tmp_path: Path) -> None:
    """A host that accepts and does not answer: /readyz says so within its limit, /livez and pages go on."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as hung:
        url = f"postgres://user:password@127.0.0.1:{hung.getsockname()[1]}/name"
        environ = {"DATABASE_URL": url, "DATA_DIR": str(tmp_path)}
        with Server(*COMMAND, **environ).wait() as server:
            for number in range(8):
                answer = httpx2.get(server.url + "/readyz", trust_env=False, timeout=4)
                assert answer.status_code == 503
                failed = answer.json()["failed"]
                assert failed["database"] in ("no answer within 3 s", "OperationalError"), number
                for path in ("/livez", "/missing"):
                    assert httpx2.get(server.url + path, trust_env=False, timeout=2).status_code < 500
            log = server.log()
            assert len(re.findall("not ready: database", log)) <= 3, log


def test_a_copy_of_the_repository_needs_no_name(tmp_path: Path) -> None:
    """Also in a folder with a # in its name, the SQLite file is in .data."""
    copy = Path(shutil.copytree(ROOT, tmp_path / "c#app", ignore=HOUSEKEEPING))
    environ = {"PATH": "/usr/bin:/bin"}
    run(sys.executable, "-m", "wsgi_app.django_site", "migrate", cwd=copy, env=environ)
    assert (copy / ".data/db.sqlite3").exists()
    assert not (tmp_path / "c").exists()
