"""The files agree with each other where checks/doctor.py does not look: ports, process mode, locks."""

import json
import re
import tomllib

from dotenv import dotenv_values

from checks.doctor import seconds
from tests.support.commands import ROOT
from tests.support.files import CADDYFILE, edge, long_running, processes
from tests.support.processes import EDITS, JSON, PROGRAMS

MEBIBYTE = 1024 * 1024


def test_the_edge_refuses_before_the_servers_do() -> None:
    """Its limits for body, headers, address <= theirs; it holds a body whole; it tries until seen ready."""
    assert re.search(r"@large .* > (\d+)`", CADDYFILE)[1] == str(MEBIBYTE), "the applications' own limit"
    assert edge("request_buffers") == "1025KiB", "> @large, or it would not know that it has all of it"
    assert edge("max_size") == "1026KiB", "> request_buffers, or it would not know that there is more"
    longest = int(re.search(r"{uri}.size\(\) > (\d+)", CADDYFILE)[1])
    assert len("OPTIONS  HTTP/1.1\r\n") + longest <= 4094, "Gunicorn's default limit_request_line"
    assert seconds(edge("health_interval")) < seconds(edge("lb_try_duration"))


def test_the_edge_serves_each_service_where_compose_publishes_it() -> None:
    """The listener behind SERVICE_PORT leads to the service, and four replicas of it."""
    sites = r"^http://:(80\d\d)\b.*{\n(?:\t.*\n)*?\timport service (\S+)"
    listeners = dict(re.findall(sites, CADDYFILE, re.MULTILINE))
    ports = {name: name.upper().replace("-", "_") + "_PORT" for name in listeners.values()}
    assert ports.keys() == long_running().keys() - {"edge"}
    text = (ROOT / "docker-compose.yml").read_text()
    for port, name in listeners.items():
        assert f'"127.0.0.1:${{{ports[name]}:-{port}}}:{port}"' in text, name
    assert re.findall(r"{args\[0\]}-(\d):8000", CADDYFILE) == ["1", "2", "3", "4"]


def test_process_mode_runs_the_services_that_compose_runs() -> None:
    """The same names, the same commands as the images."""
    programs = {name: " ".join(["-m", *command]) for name, command in PROGRAMS.items()}
    started = {
        name for name, p in processes().items() if p.is_long_running and not p.definition.get("profiles")
    }
    started.remove("edge")
    assert started == programs.keys()
    stages = re.findall(r"^FROM \S+ AS (\S+)$|^CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    commands, stage = {}, ""
    for name, command in stages:
        stage = name or stage
        if command:
            commands[stage] = " ".join(json.loads(command)[1:])
    assert commands | programs == commands


def test_env_example_shows_the_defaults_that_compose_has() -> None:
    """Every ${VARIABLE:-default} of docker-compose.yml stands there with the same default."""
    values = dotenv_values(ROOT / ".env.example")
    found = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
    assert found
    assert found == {name: values.get(name) for name in found}


def test_env_example_lists_every_variable_that_the_code_reads() -> None:
    """No setting is a secret of the code."""
    reads = r'(?:settings|os)\.(?:text|integer|choice|flag|words|environ\.get)\(\s*"(\w+)"'
    secrets = r'settings\.secret\("(\w+)"\)'
    # What the images take in.
    copies = re.findall(r"^COPY ([^-].*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for words in copies for name in words.split()}
    files = [ROOT / name for name in names if (ROOT / name).is_file()]
    sources = files + [path for name in names for path in (ROOT / name).rglob("*.py")]
    read = set()
    for path in sources:
        text = path.read_text()
        read |= set(re.findall(reads, text))
        for name in re.findall(secrets, text):
            read |= {name, f"{name}_FILE"}
    assert len(read) > 5
    listed = set(re.findall(r"^#?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    gunicorns = {"GUNICORN_CMD_ARGS", "GUNICORN_PID"}
    assert read - listed - gunicorns == set()
    composed = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker-compose.yml").read_text()))
    assert listed - read - composed == set(), "listed, but nothing reads it"


def test_every_application_refuses_the_same_body_size() -> None:
    """One mebibyte for JSON and for a WebSocket message."""
    if "fastapi" in PROGRAMS:
        assert processes()["fastapi"].uvicorn["ws_max_size"] == MEBIBYTE
    for path in (EDITS[service][0] for service in JSON):
        assert "= 1024 * 1024  # bytes; a longer body gets 413" in (ROOT / path).read_text(), path


def test_the_locks_come_from_one_resolution() -> None:
    """A package has one version wherever it is locked, every one with hashes and without an address."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert {f"{name}.txt" for name in groups} == {path.name for path in (ROOT / "requirements").iterdir()}
    versions: dict[str, str] = {}
    for name in groups:
        text = (ROOT / f"requirements/{name}.txt").read_text()
        assert "://" not in text
        for package, version, rest in re.findall(
            r"^([\w.-]+)==(\S+)([^\n]*(?:\n    .*)*)", text, re.MULTILINE
        ):
            assert versions.setdefault(package, version) == version, f"{package} in {name}"
            assert "--hash=sha256:" in rest, package
    assert {name.partition("-")[0] for name in PROGRAMS} <= versions.keys()
