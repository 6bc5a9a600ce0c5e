"""`make swarm-deploy`: what it gives to Docker, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import pytest

from checks.project import STACK_FILE, has_compose
from deploy.swarm import __main__ as swarm
from tests.support.commands import ROOT, lacking, run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with our stack and nothing else, as the current one."""
    if not has_compose():
        lacking("no Docker Compose to resolve the stack with")
    (tmp_path / STACK_FILE).parent.mkdir(parents=True)
    shutil.copy(ROOT / STACK_FILE, tmp_path / STACK_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "shop")
    return tmp_path


def test_docker_accepts_the_stack_with_the_values_of_compose(project: Path) -> None:
    """`docker stack` itself reads no .env, and quotes in .env.SERVICE as parts of the value."""
    (project / ".env").write_text("VERSION=1.2\nREQUEST_TIMEOUT=60\nCPUS=0.5\nTMP_SIZE=64m\n")
    name, stack = swarm.resolve()
    service = next(key for key in stack["services"] if key not in ("edge", "migrate"))
    (project / f".env.{service}").write_text("PASSWORD='a$b \"c\" # d'\nEMPTY=\n")
    name, stack = swarm.resolve()
    swarm.check_versions(stack)
    options = ("stack", "config", "--compose-file", "-")
    text = run("docker", *options, input=json.dumps(stack), env=os.environ | {"b": "wrong"})
    assert name == "shop"
    assert "PASSWORD: 'a$b \"c\" # d'" in text
    assert 'EMPTY: ""' in text
    assert f"image: shop-{service}:1.2\n" in text
    assert 'REQUEST_TIMEOUT: "60"' in text
    assert 'cpus: "0.5"' in text
    assert f"size: {64 * 1024**2}\n" in text


def test_a_tag_that_moves_is_refused(project: Path) -> None:
    """Swarm would see no change, and could not return to the version before."""
    _, stack = swarm.resolve()
    with pytest.raises(SystemExit, match=r"VERSION=latest: must be a tag that names one image"):
        swarm.check_versions(stack)
