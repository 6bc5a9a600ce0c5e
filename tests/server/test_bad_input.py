"""A wrong setting stops the start with one line that names it, its value and what is allowed."""

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, poll, run
from tests.support.containers import Containers
from tests.support.processes import PROGRAMS, Processes, processes_of
from tests.support.servers import Server

# One service of each server.
SERVERS = {command[0]: command for command in PROGRAMS.values()}
DJANGO = {
    "gunicorn": ("serving.gunicorn", "wsgi_app.django_site.wsgi"),
    "manage": ("wsgi_app.django_site", "check"),
}
SQLITE = "sqlite:///nowhere"  # Django
URL = "postgres://USER:PASSWORD@HOST:PORT/NAME or sqlite:///PATH"

WHOLE = "a whole number from 1 to 512"
PORT = "a whole number from 0 to 65535"
PROXIES = "addresses, networks or host names of your proxies"
PASSWORD = "hunter2"


def refusal(*command: str, **environ: str) -> str:
    """The one line with which the start ends; fails when it does not end or says anything else."""
    # A site whose static files are not collected yet would also be warned of.
    with Server(*command, PYTHONWARNINGS="ignore", **environ) as server:
        assert server.exit_code(10) != 0, server.log()
        said = [text for text in server.log().splitlines() if " INFO " not in text]
        assert len(said) == 1, server.log()
        assert PASSWORD not in said[0]
        return said[0]


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WEB_CONCURRENCY", "abc", WHOLE),
        ("WEB_CONCURRENCY", "0", WHOLE),
        ("WEB_CONCURRENCY", "-1", WHOLE),
        ("WEB_CONCURRENCY", "2.5", WHOLE),
        ("WORKLOAD", "nonsense", "one of mixed, cpu, io, asyncio"),
        ("WORKER_MEMORY_MB", "512m", "a whole number from 16 to 1048576"),
        ("LOG_LEVEL", "loud", "one of critical, error, warning, info, debug"),
        ("LOG_FORMAT", "xml", "one of plain, json"),
        ("PORT", "http", PORT),
        ("PORT", "65536", PORT),
        ("FORWARDED_ALLOW_IPS", "10.0.0.256", PROXIES),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8", PROXIES),
        ("FORWARDED_ALLOW_IPS", "*", PROXIES),
    ],
)
def test_every_server_refuses(server: str, name: str, value: str, allowed: str) -> None:
    """Both servers answer a wrong variable with the same line, and without a trace."""
    line = refusal(*SERVERS[server], **{name: value})
    assert line.startswith(f"{name}={value!r}: must be {allowed}")


@pytest.mark.parametrize("count", ["0", "513"])
def test_a_flag_for_too_many_or_no_workers_is_refused(count: str) -> None:
    """A server without workers would listen and never answer; a typing error would start a thousand."""
    # The impossible address stops a server that forgot the bound.
    line = refusal(*SERVERS["serving.gunicorn"], "--workers", count, HOST="256.0.0.1")
    assert line.startswith(f"--workers={count}: must be a whole number from 1 to 512")


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--threads", "0", "a whole number of at least 1"),
        ("--worker-connections", "0", "a whole number of at least 1"),
        ("--bind", "127.0.0.1:65536", "an address whose port is at most 65535"),
    ],
)
def test_a_flag_that_gunicorn_accepts_and_cannot_serve_with_is_refused(
    flag: str, value: str, allowed: str
) -> None:
    """Gunicorn itself ends with a traceback, or listens and never answers."""
    line = refusal(*SERVERS["serving.gunicorn"], flag, value)
    assert re.fullmatch(rf"{flag}='?{value}'?: must be {allowed}", line)


@pytest.mark.parametrize("server", SERVERS)
def test_a_host_that_is_no_address_is_named(server: str) -> None:
    """The port is not to blame."""
    line = refusal(*SERVERS[server], HOST="256.0.0.1")
    assert line.startswith("HOST='256.0.0.1': must be an address of this machine, such as 127.0.0.1 (")


@pytest.mark.parametrize("server", SERVERS)
def test_a_wrong_workload_is_refused_although_the_number_of_workers_is_fixed(server: str) -> None:
    """It chooses the threads, too."""
    line = refusal(*SERVERS[server], WORKLOAD="gpu", WEB_CONCURRENCY="1")
    assert line == "WORKLOAD='gpu': must be one of mixed, cpu, io, asyncio"


@pytest.mark.parametrize("command", PROGRAMS.values(), ids=" ".join)
def test_an_empty_variable_counts_as_unset(command: tuple[str, ...], tmp_path: Path) -> None:
    """Compose passes `NAME=` for a variable that has no value: no reason to complain."""
    text = "\n".join(path.read_text() for path in ROOT.glob(".env*.example"))
    names = re.findall(r"^#? ?([A-Z_]+)=", text, re.MULTILINE)
    assert {"DRAIN_SECONDS", "MAX_BODY", "REQUEST_TIMEOUT", "WORKLOAD"} < set(names)
    empty = {name: "" for name in names if name not in ("PORT", "DATA_DIR")}
    with Server(*command, "--workers", "1", **empty, DATA_DIR=str(tmp_path)) as server:
        server.wait()


@pytest.mark.parametrize("server", SERVERS)
def test_an_occupied_port_is_named(server: str) -> None:
    """The start ends at once, instead of trying again for a while."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refusal(*SERVERS[server], PORT=str(port))
        assert line.startswith(f"HOST and PORT='127.0.0.1:{port}': must be free to listen on")


@pytest.mark.parametrize("command", DJANGO)
@pytest.mark.parametrize(
    "url",
    [
        f"mysql://user:{PASSWORD}@db/app",
        f"postgres://user:{PASSWORD}@db:port/app",
        f"user:{PASSWORD}@db/app",
        PASSWORD,
    ],
)
def test_a_database_url_is_refused_without_its_password(command: str, url: str, tmp_path: Path) -> None:
    """Not even what is no URL is repeated: it may be the password alone."""
    line = refusal(*DJANGO[command], DATABASE_URL=url, DATA_DIR=str(tmp_path))
    assert re.fullmatch(rf"DATABASE_URL='[^']*': must be {URL}", line)


@pytest.mark.parametrize("command", DJANGO)
@pytest.mark.parametrize(
    ("name", "value", "allowed", "others"),
    [
        ("DJANGO_CSRF_TRUSTED_ORIGINS", "app.example.com", "origins such as https://app.example.com", {}),
        ("DJANGO_HTTPS", "maybe", "one of 1, true, yes, on, 0, false, no, off", {}),
        ("DJANGO_SECRET_KEY_FILE", "{}/missing", "a file that this user can read (No such", {}),
        ("DJANGO_SECRET_KEY_FILE", "{}", "a file that this user can read (Is a directory)", {}),
        ("DJANGO_SECRET_KEY_FILE", "{}/empty", "a file with the secret in it; it is empty", {}),
        (
            "DJANGO_SECRET_KEY_FILE",
            "{}/empty",
            "unset while DJANGO_SECRET_KEY is set",
            {"DJANGO_SECRET_KEY": PASSWORD},
        ),
        (
            "COMPOSE_PROFILES",
            "a,postgres",
            "without postgres, because DATABASE_URL",
            {"DATABASE_URL": SQLITE},
        ),
        ("COMPOSE_PROFILES", "postgres", "without postgres where Compose does not start Django", {}),
        ("DATA_DIR", "{}/empty", "a directory", {}),
        ("DATA_DIR", "{}/empty/below", "a writable directory (Not a directory)", {}),
        ("DATA_DIR", "/sys/data", "a writable directory", {}),
        ("DATA_DIR", "{}/damaged", "a directory whose secret_key", {}),
    ],
)
def test_django_refuses(
    command: str, name: str, value: str, allowed: str, others: dict, tmp_path: Path
) -> None:
    """The server and the management commands say the same line."""
    (tmp_path / "empty").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/secret_key").touch()
    value = value.format(tmp_path)
    line = refusal(*DJANGO[command], **{"DATA_DIR": str(tmp_path), name: value}, **others)
    assert line.startswith(f"{name}={value!r}: must be {allowed}")


WRONG = {
    "django": ("DJANGO_HTTPS", "maybe"),
    "flask": ("WEB_CONCURRENCY", "abc"),
    "fastapi": ("LOG_LEVEL", "loud"),
}


@pytest.fixture(scope="module")
def wrong(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """A project whose every service has a wrong variable; built, not started."""
    override = tmp_path_factory.mktemp("wrong") / "override.yml"
    lines = (f"  {service}: {{environment: {{{name}: {value}}}}}" for service, (name, value) in WRONG.items())
    override.write_text("\n".join(["services:", *lines]))
    stack = Containers(override)
    try:
        stack.compose("build")
        yield stack
    finally:
        stack.down()


@pytest.mark.slow
@pytest.mark.parametrize("service", WRONG)
def test_compose_up_fails_soon_and_the_log_says_why(wrong: Containers, service: str) -> None:
    """A container that cannot start makes `up --wait` fail, not wait."""
    name, value = WRONG[service]
    begin = time.monotonic()
    output = wrong.compose("up", "--detach", "--wait", "--no-build", service, expect=1)
    assert time.monotonic() - begin < 30, output + wrong.log()
    line = re.compile(rf"^{service}-1 +\| {name}='{value}': must be ", re.MULTILINE)
    poll(lambda: line.search(wrong.log(service)), log=lambda: output + wrong.log())
    assert "Traceback" not in wrong.log(service)


def test_make_down_removes_what_crashes(wrong: Containers) -> None:
    """A service that crashes again and again is removed immediately."""
    wrong.compose("up", "--detach", "--no-build", "--no-deps", *WRONG)
    names = {"COMPOSE_PROJECT_NAME": wrong.project, "COMPOSE_FILE": os.pathsep.join(wrong.files[1::2])}
    output = run("make", "down", env=wrong.environ | names)
    assert wrong.compose("ps", "--all", "--quiet") == "", output


@pytest.mark.slow
def test_make_up_fails_soon_and_says_why(tmp_path: Path) -> None:
    """Process mode prints every service's line and leaves nothing running."""
    stack = Processes(tmp_path / "copy")
    stack.environ = {**stack.environ, "WORKLOAD": "nonsense"}
    try:
        begin = time.monotonic()
        output = stack.make("up", expect=2)
        assert time.monotonic() - begin < 120, output
        # supervisord removes its socket, which make waits for, a moment before it ends.
        poll(lambda: not processes_of(stack.directory), seconds=5, log=lambda: output)
    finally:
        stack.down()
    for service in stack.urls:
        line = rf"/{service}\.log <==\nWORKLOAD='nonsense': must be one of mixed, cpu, io, asyncio\n"
        assert re.search(line, output), output
    assert "Traceback" not in output
