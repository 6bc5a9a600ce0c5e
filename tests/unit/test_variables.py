"""Every variable of .env has bounds; a value beyond them is refused with one line that names all of it."""

import os
import re
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from checks import variables
from tests.support.commands import ROOT, lacking, run

# Values that are refused, by variable. For a variable of one service, those of the general one count.
WRONG = {
    "DOMAIN": [
        "https://example.com",
        "example.com/",
        "example.com:443",
        "a b",
        "10.0.0.1",
        "-a.b",
        "ex_am.ple",
    ],
    "HOST": [
        "https://example.com",
        "a.example.com, b.example.com",
        "example.com:8443",
        "*.example.com",
        "ü.de",
    ],
    "EDGE_ADDRESS": ["0.0.0.0:80", "localhost", "256.0.0.1", "::1", "[127.0.0.1]", "[::1", "*"],
    "PORT": ["0", "65536", "http", "8080/tcp", "80-90", "-1", "8o80"],
    "EDGE_HTTP_PORT": ["8001", "0", "http"],
    "EDGE_TRUSTED_PROXIES": ["10.0.0.0/33", "10.0.0.1,10.0.0.2", "proxy", "*", "10.0.0.0/255.0.0.0"],
    "REQUEST_TIMEOUT": ["0", "3601", "20s", "-5", "1.5", "\u0662"],
    "MAX_BODY": ["0", "1MB", "-1", "1.5MiB", "unlimited", "1025GiB"],
    "EDGE_TRANSFER_TIMEOUT": ["0", "0s", "24", "-1h", "off", "366d", "1.5.h", "forever"],
    "DRAIN_SECONDS": ["-1", "301", "2s"],
    "EDGE_ACCESS_LOG": ["ON", "no", "error"],
    "LOG_FORMAT": ["xml", "logfmt", "1"],
    "METRICS": ["prometheus", "9000"],
    "METRICS_PORT": ["0", "65536", "8000", "http"],
    "CPUS": ["-1", "abc", "0.001", "1,5", "50%", "all", "inf", "nan"],
    "MEMORY": ["0", "512", "63m", "-1m", "abc", "512x", "50%"],
    "POSTGRES_MAX_CONNECTIONS": ["24", "10001", "-1", "many"],
    "COMPOSE_PROFILES": ["a b", "a, b", "a,", "-a"],
    "TMP_SIZE": ["0", "0m", "128", "128mb", "50%", "-1m", "1.5g"],
    "PIDS": ["0", "-1", "63", "4194305", "many"],
    "NOFILE": ["0", "-1", "255", "1048577", "unlimited"],
    "EDGE_NOFILE": ["0", "unlimited"],
    "REGISTRY": ["registry.example.com", "https://registry.example.com/", "registry.example.com/Team/"],
    "VERSION": ["a/b", "1.0 ", "-1", "x" * 129, "\u0967", "a:b", "x;id"],
    "EDGE_VERSION": ["a/b"],
    "FASTAPI_TARGET": ["starlette", "FastAPI", "fastapi_hybrid"],
    "IMAGE": ["python 3", "Python:3.14", "python@sha256:12", "https://registry.example.com/python"],
    "ALERT_WEBHOOK_URL": ["alerts.example.com", "mailto:x@example.com", "https://a b"],
    "PIP_INDEX_URL": ["pypi.example.com", "file:///x", "https://pypi.example.com/simple extra"],
    "BUILD_CA": ["a,b", "a\nb"],
    "BACKUP_DIR": ["~/backups", "a\nb"],
    "BACKUP_KEEP": ["0", "10001", "-1", "all"],
}
RIGHT = {
    "DOMAIN": ["example.com", "localhost", "xn--bcher-kva.example", "Example.COM"],
    "HOST": ["example.com www.example.com", "192.0.2.1"],
    "EDGE_ADDRESS": ["", "0.0.0.0", "127.0.0.1", "[::1]", "[::]"],
    "PORT": ["1", "65535"],
    "EDGE_HTTP_PORT": ["80"],
    "EDGE_TRUSTED_PROXIES": ["", "10.0.0.1", "10.0.0.1/8 fd00::/8 ::1", "private_ranges"],
    "REQUEST_TIMEOUT": ["1", "3600", ""],
    "MAX_BODY": ["1", "1KiB", "1024GiB"],
    "EDGE_TRANSFER_TIMEOUT": ["1s", "24h", "365d", "1h30m"],
    "DRAIN_SECONDS": ["0", "300"],
    "EDGE_ACCESS_LOG": ["", "on", "off"],
    "LOG_FORMAT": ["plain", "json", "JSON"],
    "METRICS": ["on", "off"],
    "METRICS_PORT": ["9000", "65535"],
    "CPUS": ["0", "0.0", "0.01", "1", "2.5"],
    "MEMORY": ["64m", "1g", "1.5G", "536870912", "512MiB", "512mb"],
    "POSTGRES_MAX_CONNECTIONS": ["25", "10000"],
    "COMPOSE_PROFILES": ["", "*", "metrics", "a,b"],
    "TMP_SIZE": ["1k", "64M", "2g"],
    "PIDS": ["64", "4194304"],
    "NOFILE": ["256", "1048576"],
    "EDGE_NOFILE": ["256"],
    "REGISTRY": ["registry.example.com/", "localhost:5000/team/a-b/"],
    "VERSION": ["1.0", "_x", "a" * 128],
    "EDGE_VERSION": ["2"],
    "FASTAPI_TARGET": ["fastapi", "fastapi-hybrid"],
    "IMAGE": [
        "python:3.14-slim",
        "localhost:5000/a/b:1",
        f"python:3.14@sha256:{'0' * 64}",
        "a.b/c@sha256:" + "1" * 64,
    ],
    "ALERT_WEBHOOK_URL": ["http://10.0.0.1:8080/hook?key=1"],
    "PIP_INDEX_URL": ["https://user:password@pypi.example.com/simple"],
    "BUILD_CA": ["ca.pem", "/etc/ssl/a b.pem"],
    "BACKUP_DIR": ["backups", "/mnt/a b", "../backups"],
    "BACKUP_KEEP": ["1", "10000"],
}
OLD_PYTHONS = [
    folder / f"python{version}"
    for version in ("3.9", "3.10", "3.11")
    for folder in (*Path.home().glob(f".pyenv/versions/{version}.*/bin"), Path("/usr/bin"))
]
EXAMPLE = (ROOT / ".env.example").read_text()


def cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Each variable with each of its values."""
    found = []
    for name in variables.VARIABLES:
        general = name if name in table else name.rpartition("_")[2]
        found += [(name, value) for value in table.get(general, [])]
    return found


def problems(**values: str) -> list[str]:
    """What is refused of a .env with these values."""
    return variables.problems(values)


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    """One line: the file, the variable, the value, what is allowed, and a value that is."""
    (line,) = problems(**{name: value})
    assert line.startswith(f".env: {name}={value!r}: must be "), line
    assert re.search("; change it to [^ ]", line), line


@pytest.mark.parametrize(("name", "value"), cases(RIGHT))
def test_a_right_value_is_accepted(name: str, value: str) -> None:
    """Nothing is found."""
    assert problems(**{name: value}) == []


@pytest.mark.parametrize("number", range(max(map(len, RIGHT.values()))))
def test_compose_accepts_what_is_right(number: int, tmp_path: Path) -> None:
    """The number-th right value of each variable, and Compose finds it as it is written."""
    if not variables.has_compose():
        lacking("no Docker Compose to read the values")
    right: dict[str, list[str]] = {}
    for name, value in cases(RIGHT):
        right.setdefault(name, []).append(value)
    values = {name: found[number % len(found)] for name, found in right.items()}
    file = tmp_path / ".env"
    file.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))
    run("docker", "compose", "--env-file", file, "config", "--quiet", cwd=ROOT)
    found = variables.read(ROOT, "--env-file", str(file))
    assert {name: found[name] for name in values} == values


def test_every_variable_of_the_deployment_has_bounds() -> None:
    """Each that .env.example shows; its default passes."""
    shown = set(re.findall(r"^#?([A-Z][A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert variables.VARIABLES.keys() >= shown
    assert (
        problems(**{name: value or "" for name, value in dotenv_values(ROOT / ".env.example").items()}) == []
    )
    names = {name for name, _ in cases(WRONG)} & {name for name, _ in cases(RIGHT)}
    assert names >= shown, "without a case above"


def test_a_port_or_a_name_that_two_variables_have_is_named() -> None:
    """Also where one of them is a default."""
    ports = [name for name in variables.VARIABLES if name.endswith("_PORT")]
    (line,) = problems(**{ports[-1]: "8080"})
    assert line.startswith(f".env: {ports[-1]}='8080': must not contain 8080, which EDGE_HTTP_PORT has")
    hosts = [name for name in variables.VARIABLES if name.endswith("_HOST")]
    assert problems(**{hosts[0]: "a.example b.example"}) == []
    if len(hosts) > 1:
        (line,) = problems(**{hosts[0]: "a.example b.example", hosts[1]: "B.example"})
        assert f"must not contain b.example, which {hosts[0]} has" in line


def test_what_changes_the_names_of_containers_is_refused() -> None:
    """The edge finds replicas by PROJECT-SERVICE-NUMBER, a name of DNS."""
    assert problems(COMPOSE_PROJECT_NAME="a" * 50, COMPOSE_COMPATIBILITY="false") == []
    assert "must be at most 50 characters" in problems(COMPOSE_PROJECT_NAME="a" * 51)[0]
    assert "must be off, because it changes the names" in problems(COMPOSE_COMPATIBILITY="1")[0]


def test_the_shell_wins_over_the_file(tmp_path: Path) -> None:
    """The line says where the value is; the file is read as Compose reads it, whatever its form."""
    if not variables.has_compose():
        lacking("no Docker Compose to read the file")
    (tmp_path / ".env").write_text("PIDS: 1\nSECRET='\nNOFILE=1\n'\nMEMORY=1\n")
    environ = os.environ | {"PYTHONPATH": str(ROOT), "MEMORY": "2"}
    output = run(sys.executable, "-m", "checks.variables", cwd=tmp_path, env=environ, expect=1)
    starts = [line.partition(": must")[0] for line in output.splitlines()]
    assert starts == ["environment: MEMORY='2'", ".env: PIDS='1'"]


@pytest.mark.parametrize(
    "module",
    [
        "checks.variables",
        "checks.readable",
        "deploy.failures",
        "deploy.base_images",
        "deploy.status",
        "deploy.send_alert",
    ],
)
def test_an_old_python_is_enough(module: str) -> None:
    """The Python of the machine runs it, which may be older than the one of the images."""
    program = next((path for path in OLD_PYTHONS if path.is_file()), None)
    if not program:
        pytest.skip("no Python 3.9 to 3.11 here")
    run(program, "-B", "-c", f"import {module}")


def test_make_refuses_before_anything_starts(tmp_path: Path) -> None:
    """`make up`, `make dev` and `make deploy` print the line and call Docker for nothing else."""
    if not variables.has_compose():
        lacking("no Docker Compose to read the value")
    environ = os.environ | {"PIDS": "many"}
    for target in ("up", "dev", "deploy"):
        output = run("make", target, "RUNTIME=docker", env=environ, expect=2)
        line = "environment: PIDS='many': must be a whole number from 64 to 4194304; change it to 1024\n"
        assert line in output
        assert "Container" not in output


@pytest.mark.parametrize(
    "version", ["x;{}", "`{}`", "$({})", "$(shell {})", "x' ; {} ; '", 'x" ; {} ; "', "x\n{}", "--rollback"]
)
def test_no_version_reaches_a_shell(version: str, tmp_path: Path) -> None:
    """What a version contains is refused, and not run, whether make or the environment passes it."""
    if not variables.has_compose():
        lacking("no Docker Compose to read the value")
    version = version.format(f"touch {tmp_path}/reached")
    for arguments, more in (([f"VERSION={version}"], {}), ([], {"VERSION": version})):
        output = run("make", "deploy", "RUNTIME=docker", *arguments, env=os.environ | more, expect=2)
        assert "must be an image tag" in output
    assert [*tmp_path.iterdir()] == []
