"""What the doctor finds in a stack for Docker Swarm that is not what docker-compose.yml is."""

import shutil
from pathlib import Path

import pytest

from checks import swarm
from checks.project import STACK_FILE, Project, has_compose
from tests.support.commands import ROOT, lacking

STACK = (ROOT / STACK_FILE).read_text()
FLASK = "    env_file: [{path: .env.flask, required: false}]\n"

# What stands in the stack, what it becomes, and what every finding then says.
BROKEN = [
    ("  read_only: true\n", "", ".read_only=None: must be True, as in docker-compose.yml"),
    ("  cap_drop: [ALL]\n", "", ".cap_drop=None: must be ['ALL'], as in docker-compose.yml"),
    ("cap_add: [NET_BIND", "cap_add: [SYS_ADMIN, NET_BIND", "edge.cap_add=['SYS_ADMIN', 'NET_BIND_SERVICE']"),
    ("  init: true\n", "", ".init=None: must be True"),
    (FLASK, FLASK + "    user: root\n", "flask.user=root: must be None"),
    ("stop_grace_period: 90s", "stop_grace_period: 20s", ".stop_grace_period=20s: must be "),
    ("    volumes:\n      - *tmp\n", "    volumes:\n", "edge./tmp=no tmpfs volume: must be tmpfs of 128m"),
    ("TMP_SIZE:-128m", "TMP_SIZE:-64m", "/tmp=tmpfs of 64m: must be tmpfs of 128m"),
    (
        FLASK,
        FLASK + "    volumes: []\n    tmpfs: ['/tmp:size=128m']\n",
        "flask.tmpfs=['/tmp:size=128m']: must not be here, because Swarm ignores it",
    ),
    (
        'memory: "${FLASK_MEMORY:-${MEMORY:-512m}}"',
        "memory: 1g",
        "flask.deploy.resources.limits.memory=1073741824: must be 536870912",
    ),
    (
        "-IS, serving/probe.py",
        "-m, serving.health",
        ".healthcheck={'test': ['CMD', 'python', '-m', 'serving.health']",
    ),
    (
        "REQUEST_TIMEOUT:-20",
        "REQUEST_TIMEOUT:-30",
        ".environment.REQUEST_TIMEOUT=30: must be 20, as in docker-compose.yml",
    ),
    (
        "networks: [edge-flask]",
        "networks: [edge-flask, django-data]",
        "flask.networks=['django-data', 'edge-flask']: must be ['edge-flask']",
    ),
    ("-flask:${VERSION:-latest}", "-flask:1.0", "-flask:1.0: must be "),
    ("order: start-first, f", "order: stop-first, f", "update_config.order=stop-first: must be start-first"),
    (
        "<<: *update, order: stop-first",
        "<<: *update, order: start-first",
        "edge.deploy.update_config.order=start-first: must be stop-first",
    ),
    (", failure_action: rollback", "", "update_config.failure_action=None: must be rollback"),
    ("    endpoint_mode: dnsrr\n", "", "endpoint_mode=None: must be dnsrr"),
    ("mode: replicated-job", "mode: replicated", "migrate.deploy.mode=replicated: must be a job"),
    (FLASK, FLASK + "    ports: ['8002:8000']\n", "flask.ports=8000: must not be published: Swarm does so"),
    ("mode: host}", "mode: ingress}", "edge.ports.mode=ingress: must be host"),
    ('uid: "10001"', 'uid: "1000"', ".uid=1000: must be 10001, the user of the image"),
    ("    secrets: *django-secrets\n", "", ": must be one of its secrets; add it to django.secrets"),
    ("\n  flask:\n", "\n  extra:\n", "flask=None: must be in this file, too"),
    (
        'EDGE_DRAIN_SECONDS: "10"',
        'EDGE_DRAIN_SECONDS: "70"',
        "edge.stop_grace_period=1m30s: must be longer than EDGE_DRAIN_SECONDS=70 + deploy/edge/Caddyfile",
    ),
    ("services:\n", "sevices:\n", "deploy/swarm/stack.yml: must be what Compose accepts"),
]


def read(directory: Path, stack: str, compose: str = "") -> list[str]:
    """What the doctor finds in the stack of a project with our Compose file, or another, and this stack."""
    for name in ("docker-compose.yml", "Dockerfile"):
        shutil.copy(ROOT / name, directory)
    shutil.copytree(ROOT / "deploy/edge", directory / "deploy/edge")
    (directory / STACK_FILE).parent.mkdir()
    (directory / STACK_FILE).write_text(stack)
    if compose:
        (directory / "docker-compose.yml").write_text(compose)
    project = Project(directory, env_file=Path("/dev/null"))
    return [*swarm.findings(project), *project.broken]


@pytest.fixture(autouse=True)
def compose() -> None:
    """Skip where nothing can resolve the files."""
    if not has_compose():
        lacking("no Docker Compose to resolve the files with")


def test_our_stack_has_no_finding(tmp_path: Path) -> None:
    """The two files agree."""
    assert read(tmp_path, STACK) == []


def test_a_compose_file_with_an_error_is_the_one_finding(tmp_path: Path) -> None:
    """There is nothing to compare the stack with."""
    (found,) = read(tmp_path, STACK, compose="sevices: {}\n")
    assert "docker-compose.yml: must be what Compose accepts" in found


@pytest.mark.parametrize("profile", ["metrics", "postgres"])
def test_a_profile_of_compose_is_no_difference(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack has no profiles."""
    monkeypatch.setenv("COMPOSE_PROFILES", profile)
    assert read(tmp_path, STACK) == []


@pytest.mark.parametrize(("old", "new", "sentence"), BROKEN, ids=[case[2] for case in BROKEN])
def test_one_change_of_the_stack_is_named(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    """Every finding is about the change."""
    assert old in STACK
    found = read(tmp_path, STACK.replace(old, new))
    assert found
    assert [finding for finding in found if sentence not in finding] == []
