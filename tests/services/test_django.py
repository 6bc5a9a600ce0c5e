"""Django's settings hold what they say: TLS switch, secret key, databases."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import HOUSEKEEPING, ROOT, answers, poll, run
from tests.support.postgres import Postgres
from tests.support.servers import Server, workers

MANAGE = (sys.executable, "-m", "wsgi_app.django_site")
GUNICORN = ("serving.gunicorn", "wsgi_app.django_site.wsgi")
LISTENING = "0A"


def environ(data: Path, **more: str) -> dict[str, str]:
    """The environment with a data directory of its own."""
    return os.environ | {"DATA_DIR": str(data)} | more


@pytest.fixture(scope="module")
def _static() -> None:
    """The static files that a page refers to; `make up` and the image make them likewise."""
    run(*MANAGE, "collectstatic", "--noinput", env=os.environ | {"DJANGO_SECRET_KEY": "for this command"})


def token(page: httpx2.Response) -> str:
    """The form's CSRF token."""
    found = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert found, page.text
    return found[1]


def test_the_deployment_check_passes_with_https_on(tmp_path: Path) -> None:
    """Nothing to warn of behind TLS; and the check can fail, for it does without."""
    check = (*MANAGE, "check", "--deploy", "--fail-level", "WARNING")
    run(*check, env=environ(tmp_path, DJANGO_HTTPS="on"))
    assert "security.W012" in run(*check, env=environ(tmp_path, DJANGO_HTTPS="off"), expect=1)


def test_no_migration_is_missing(tmp_path: Path) -> None:
    """The models and the migrations say the same."""
    run(*MANAGE, "makemigrations", "--check", "--dry-run", env=environ(tmp_path))


@pytest.mark.usefixtures("_static")
def test_https_on_redirects_and_secures_the_cookies(tmp_path: Path) -> None:
    """Plain HTTP is sent to HTTPS; behind a TLS proxy the form works with Secure cookies."""
    run(*MANAGE, "migrate", env=environ(tmp_path))
    variables = {"DJANGO_HTTPS": "on", "DATA_DIR": str(tmp_path), "WEB_CONCURRENCY": "1"}
    with Server(*GUNICORN, **variables).wait() as server:
        plain = httpx2.get(server.url + "/")
        assert (plain.status_code, plain.headers["location"][:8]) == (301, "https://")
        proxied = {"x-forwarded-proto": "https"}
        page = httpx2.get(server.url + "/", headers=proxied)
        assert page.status_code == 200, server.log()
        assert page.headers["strict-transport-security"] == "max-age=3600"
        foreign = httpx2.get(server.url + "/", headers=proxied | {"host": "evil.example"})
        assert foreign.status_code == 400
        cookie = page.headers["set-cookie"]
        assert all(word in cookie for word in ("Secure", "HttpOnly", "SameSite=Lax")), cookie
        form = {"author": "Tim", "message": "over TLS", "csrfmiddlewaretoken": token(page)}
        sent = proxied | {
            "cookie": cookie.split(";")[0],
            "origin": server.url.replace("http", "https"),
            "referer": server.url.replace("http", "https"),
        }
        assert httpx2.post(server.url + "/", data=form, headers=sent).status_code == 302, server.log()


def test_processes_that_start_at_once_share_one_generated_key(tmp_path: Path) -> None:
    """Eight first starts agree on one key, which only its owner can read."""
    code = "from wsgi_app.django_site.settings import SECRET_KEY; print(SECRET_KEY)"
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environ(tmp_path / "new"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    keys = {start.communicate(timeout=60)[0].strip() for start in starts}
    assert len(keys) == 1
    assert len(keys.pop()) > 50
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["secret_key"]
    assert stat.S_IMODE((tmp_path / "new/secret_key").stat().st_mode) == 0o600


@pytest.mark.usefixtures("_static")
def test_a_session_survives_the_rotation_of_the_key(tmp_path: Path) -> None:
    """What the old key signed is valid while it is a fallback, and no longer."""
    code = (
        "import django; django.setup()\nfrom django.core import signing; import sys\n"
        "print(signing.loads(sys.argv[1]) if len(sys.argv) > 1 else signing.dumps('kept'))"
    )
    command = (sys.executable, "-c", code)
    base = environ(tmp_path, DJANGO_SETTINGS_MODULE="wsgi_app.django_site.settings")
    (tmp_path / "key").write_text("the old key\n")
    signed = run(*command, env=base | {"DJANGO_SECRET_KEY_FILE": str(tmp_path / "key")}).strip()
    new = base | {"DJANGO_SECRET_KEY": "the new key"}
    assert run(*command, signed, env=new | {"DJANGO_SECRET_KEY_FALLBACKS": "the old key"}).strip() == "kept"
    assert "BadSignature" in run(*command, signed, env=new, expect=1)


def test_sqlite_waits_for_its_turn(tmp_path: Path) -> None:
    """Write-ahead log on; sixteen threads that read and then write lose no update."""
    run(*MANAGE, "migrate", env=environ(tmp_path))
    code = (
        "import django; django.setup()\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from django.db import connection, transaction\n"
        "from wsgi_app.django_site.models import Entry\n"
        "def add(n):\n"
        "    with transaction.atomic():\n"
        "        Entry.objects.create(author='x', message=str(Entry.objects.count()))\n"
        "    connection.close()\n"
        "with ThreadPoolExecutor(16) as pool: list(pool.map(add, range(64)))\n"
        "print(len(set(Entry.objects.values_list('message', flat=True))))\n"
        "connection.cursor().execute('PRAGMA journal_mode').fetchone()\n"
        "print(connection.cursor().execute('PRAGMA journal_mode').fetchone()[0])\n"
    )
    base = environ(tmp_path, DJANGO_SETTINGS_MODULE="wsgi_app.django_site.settings")
    assert run(sys.executable, "-c", code, env=base).split() == ["64", "wal"]


@pytest.mark.usefixtures("_static")
def test_postgresql_serves_when_the_url_says_so(tmp_path: Path) -> None:
    """DATABASE_URL from a file: migrated, written, read. While it is away, only what needs it gets 503."""
    settings = {"DATABASE_URL_FILE": str(tmp_path / "url"), "DATA_DIR": str(tmp_path / "data")}
    settings |= {"WEB_CONCURRENCY": "1"}  # each worker has its own last result
    with Postgres() as postgres:
        (tmp_path / "url").write_text(postgres.url + "\n")
        poll(lambda: "OK" in run(*MANAGE, "migrate", env=os.environ | settings, expect=None))
        with Server(*GUNICORN, **settings).wait("/readyz") as server:
            page = httpx2.get(server.url + "/")
            form = {"author": "Elephant", "message": "in PostgreSQL", "csrfmiddlewaretoken": token(page)}
            cookies = {"cookie": f"csrftoken={page.cookies['csrftoken']}"}
            assert httpx2.post(server.url + "/", data=form, headers=cookies).status_code == 302, server.log()
            page = httpx2.get(server.url + "/")
            assert "in PostgreSQL" in page.text
            style = re.search(r'href="(/static/\S+\.css)"', page.text)[1]
            postgres.stop(signal.SIGQUIT)
            failed = {"database": "OperationalError"}
            answer = poll(lambda: (now := httpx2.get(server.url + "/readyz")).status_code == 503 and now)
            assert answer.json() == {"status": "unready", "failed": failed}
            answer = httpx2.get(server.url + "/readyz?once")
            assert (answer.status_code, answer.json()) == (200, {"status": "degraded", "failed": failed})
            for path in ("/livez", style):
                assert httpx2.get(server.url + path).status_code == 200
            page = httpx2.get(server.url + "/", timeout=3)
            assert (page.status_code, page.headers["retry-after"]) == (503, "5")
            assert "Traceback" not in page.text
            assert "the database is away: connection" in server.log()
            assert "Traceback" not in server.log()
            postgres.start()
            poll(lambda: "in PostgreSQL" in httpx2.get(server.url + "/").text, 5, server.log)
    assert not (tmp_path / "data/db.sqlite3").exists()


@pytest.mark.slow
def test_a_broken_manifest_is_no_mistake_of_every_page(tmp_path: Path) -> None:
    """A server that starts with half a staticfiles.json says so in /readyz, and answers pages with 503."""
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=HOUSEKEEPING)
    environ = {"DATA_DIR": str(tmp_path / "data"), "WEB_CONCURRENCY": "1"}
    for command in ("migrate", "collectstatic"):
        run(*MANAGE, command, "--noinput", cwd=copy, env=os.environ | environ)
    manifest = copy / "wsgi_app/django_site/staticfiles/staticfiles.json"
    manifest.write_text(manifest.read_text()[:100])
    with Server(*GUNICORN, cwd=copy, **environ) as server:
        server.wait()
        page = httpx2.get(server.url + "/")
        assert (page.status_code, page.headers["retry-after"]) == (503, "5"), server.log()
        assert list(httpx2.get(server.url + "/readyz").json()["failed"]) == ["static files"]


def open_files(pid: int) -> list[str]:
    """What the process' descriptors lead to."""
    targets = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            targets.append(str(descriptor.readlink()))
        except OSError:  # closed meanwhile
            continue
    return targets


def sockets(pid: int) -> list[str]:
    """Kind and state of every socket that the process has open."""
    found = {}
    columns = {"tcp": (9, 3), "tcp6": (9, 3), "udp": (9, 3), "udp6": (9, 3), "unix": (6, 5)}
    for kind, (inode, state) in columns.items():
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            found[f"socket:[{fields[inode]}]"] = f"{kind} {fields[state]}"
    return sorted(found.get(name, name) for name in open_files(pid) if name.startswith("socket:"))


def test_the_master_opens_nothing_that_workers_would_share(tmp_path: Path) -> None:
    """Loading Django opens no connection and no database; a worker does, at its first query."""
    database = tmp_path / "db.sqlite3"
    environ = {"DATABASE_URL": f"sqlite:///{database}", "DATA_DIR": str(tmp_path), "WEB_CONCURRENCY": "1"}
    with Server(*GUNICORN, **environ) as server:
        server.wait()
        assert not answers(server.url + "/readyz")
        assert any(str(database) in open_files(pid) for pid in workers(server)), server.log()
        assert not [name for name in open_files(server.process.pid) if name.startswith(str(database))]
        assert sockets(server.process.pid) == [f"tcp {LISTENING}"]
