"""The files agree with each other where checks/doctor.py does not look: ports, process mode, locks."""

import json
import re
import tomllib

from dotenv import dotenv_values

from checks.dockerfile import Dockerfile
from deploy import base_images
from deploy.process.servers import SERVICES, TARGETS
from tests.support.commands import ROOT
from tests.support.files import long_running

COMPOSE = (ROOT / "docker-compose.yml").read_text()


def test_the_edge_serves_each_service_where_compose_publishes_it() -> None:
    """The listener behind SERVICE_PORT is in the site file of that service."""
    sites = {path.stem: path.read_text() for path in (ROOT / "deploy/edge/sites").iterdir()}
    assert sites.keys() == long_running().keys() - {"edge"}
    for name, site in sites.items():
        port = re.search(r"http://:(80\d\d) {", site)[1]
        assert f'"127.0.0.1:${{{name.upper()}_PORT:-{port}}}:{port}"' in COMPOSE, name
        assert f"import proxy {name}\n" in site


def test_process_mode_runs_what_the_images_run() -> None:
    """Every target of the Dockerfile has the same command in process mode."""
    assert long_running().keys() - {"edge"} == set(SERVICES)
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    stages = re.findall(r"^FROM \S+ AS (\S+)$|^CMD (.*)$|^ENV (WORKLOAD=\S+)$", text, re.MULTILINE)
    commands, stage, variable = {}, "", ""
    for name, command, workload in stages:
        stage = name or stage
        variable = "" if name else workload or variable
        if command:
            commands[stage] = " ".join([*(["env", variable] if variable else []), *json.loads(command)])
    assert commands == TARGETS


def test_update_tools_find_every_base_image() -> None:
    """Each is a FROM line with a minor version: `make pin` and Dependabot read these, and no arguments."""
    text = (ROOT / "Dockerfile").read_text()
    found = [match["image"] for match in base_images.FROM.finditer(text)]
    # An argument leads to one of them unless .env has another image.
    assert sorted(found) == sorted(Dockerfile(text).bases)
    assert all(re.search(r":\d+\.\d+(-|$)", image) for image in found)
    folders = re.findall(r"package-ecosystem: (\S+)", (ROOT / ".github/dependabot.yml").read_text())
    assert folders == ["docker", "docker-compose", "pip", "github-actions"]


def test_env_example_shows_the_defaults_that_compose_has() -> None:
    """Every ${VARIABLE:-default} of docker-compose.yml is in .env.example with the same default."""
    # Without those whose default is another variable.
    found = dict(re.findall(r"\$\{(\w+):-([^}$]*)\}", COMPOSE))
    # Its default is the Dockerfile's, which `make pin` changes; .env.example has none.
    image = found.pop("PYTHON_IMAGE")
    assert re.search(
        rf"^FROM {image}(@\S+)? AS python-default$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    values = dotenv_values(ROOT / ".env.example")
    assert {name: values.get(name) or "" for name in found} == found


def test_the_swarm_stack_reads_the_variables_of_compose() -> None:
    """The same names with the same defaults, without those of ports on loopback, builds and profiles."""
    profiles = (
        "COMPOSE_PROFILES",
        "ALERT",
        "GRAFANA",
        "PROMETHEUS",
        "PYTHON_IMAGE",
        "POSTGRES_",
    )
    stack = (ROOT / "deploy/swarm/stack.yml").read_text()
    pattern = r"\$\{(\w+)((?::?-[^}$]*)?)"
    found, expected = set(re.findall(pattern, stack)), set(re.findall(pattern, COMPOSE))
    loopback = {f"{name.upper()}_PORT" for name in SERVICES}
    assert found <= expected
    left = {name for name, _ in expected - found if not name.startswith(profiles)}
    assert left == loopback | {"EDGE_ADDRESS", "BUILD_CA"}


def test_the_examples_list_every_variable_that_is_read() -> None:
    """Each variable of the code and of docker-compose.yml is listed, and no other."""
    reads = r'(?:settings|os)\.(?:text|integer|choice|flag|words|size|origins|environ\.get)\(\s*"(\w+)"'
    # What the images contain.
    copies = re.findall(r"^COPY ([^-].*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for words in copies for name in words.split()}
    files = [ROOT / name for name in names if (ROOT / name).is_file()]
    sources = files + [path for name in names for path in (ROOT / name).rglob("*.py")]
    read = set()
    for path in sources:
        text = path.read_text()
        read |= set(re.findall(reads, text))
        for name in re.findall(r'settings\.secret\("(\w+)"\)', text):
            read |= {name, f"{name}_FILE"}
    assert len(read) > 5
    text = "".join(path.read_text() for path in ROOT.glob(".env*example"))
    listed = set(re.findall(r"^#?([A-Z][A-Z_]+)=", text, re.MULTILINE))
    composed = set(re.findall(r"\$\{(\w+):?-", COMPOSE))
    composed |= set(re.search(r"args: \[(.*)\]", COMPOSE)[1].split(", "))
    # By programs of this machine, before anything runs.
    for path in (ROOT / "deploy").glob("*.py"):
        composed |= set(re.findall(r'settings(?:\(\))?\.get\("(\w+)"\)', path.read_text()))
    # Of Gunicorn and systemd, and what Compose or process mode sets for each process.
    elsewhere = {"GUNICORN_CMD_ARGS", "GUNICORN_PID", "LISTEN_FDS", "LISTEN_PID"}
    elsewhere |= {"HOST", "PORT", "DATA_DIR", "FORWARDED_ALLOW_IPS"}
    # What an image sets for its own server.
    elsewhere |= set(re.findall(r"^ENV (\w+)=", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert (read | composed) - listed - elsewhere == set()
    assert listed - read - composed == set(), "listed, but nothing reads it"


def test_the_locks_come_from_one_resolution() -> None:
    """A package has one version wherever it is locked, every one with hashes and without an address."""
    files = (ROOT / "pyproject.toml", *ROOT.glob("*/pyproject.toml"))
    groups = [name for file in files for name in tomllib.loads(file.read_text())["dependency-groups"]]
    assert set(groups) == {path.stem for path in (ROOT / "requirements").glob("*.txt")}
    versions: dict[str, str] = {}
    for name in groups:
        text = (ROOT / f"requirements/{name}.txt").read_text()
        assert "://" not in text
        pins = re.findall(r"^([\w.-]+)==(\S+)([^\n]*(?:\n    .*)*)", text, re.MULTILINE)
        for package, version, rest in pins:
            assert versions.setdefault(package, version) == version, f"{package} in {name}"
            assert "--hash=sha256:" in rest, package
    assert versions.keys() >= set(SERVICES)
