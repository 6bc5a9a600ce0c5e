"""`make deploy PULL=1` and `make pin`, against a registry whose base image changes."""

import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, run
from tests.support.registry import Registry

COMPOSE = """
name: {name}
services:
  app:
    build: {{context: ., target: app}}
    image: "${{COMPOSE_PROJECT_NAME}}-app:${{VERSION:-latest}}"
    command: [sleep, infinity]
    init: true
"""


@pytest.fixture
def registry(engine: None, tmp_path: Path) -> Iterator[Registry]:
    """A registry of its own."""
    found = Registry(tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def project(registry: Registry, tmp_path: Path) -> Iterator[Path]:
    """A project on a base image that is in the registry and on this machine."""
    name = f"test-{secrets.token_hex(4)}"
    base = f"{registry.address}/base:3.14-slim"
    (tmp_path / "docker-compose.yml").write_text(COMPOSE.format(name=name))
    (tmp_path / "Dockerfile").write_text(f"FROM {base} AS python-default\nFROM python-default AS app\n")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    push(base, "one", tmp_path)
    try:
        run("docker", "compose", "up", "--build", "--detach", "--wait", cwd=tmp_path)
        yield tmp_path
    finally:
        run("docker", "compose", "down", "--timeout", "1", cwd=tmp_path)
        references = ("--filter", f"reference={name}-app", "--filter", f"reference={registry.address}/*")
        images = set(run("docker", "image", "ls", "--quiet", *references).split())
        run("docker", "image", "rm", "--force", *images)


def push(image: str, package: str, directory: Path) -> None:
    """Push an image that has this package; this machine keeps the image that it has under the name."""
    listed = f"Package: {package}\\nStatus: install ok installed\\nVersion: 1\\nArchitecture: all\\n"
    listed += "Maintainer: a\\nDescription: a\\n"
    lines = f"FROM python:3.14-slim\nRUN printf '\\n{listed}' >> /var/lib/dpkg/status\n"
    (directory / "base.dockerfile").write_text(lines)
    here = run("docker", "image", "ls", "--quiet", "--filter", f"reference={image}").strip()
    run("docker", "build", "--tag", image, "--file", directory / "base.dockerfile", directory)
    run("docker", "push", image)
    if here:
        run("docker", "tag", image, image.replace("base:", "newer:"))
        run("docker", "tag", here, image)


def test_the_newest_base_image_is_fetched_and_its_changes_are_listed(
    project: Path, registry: Registry
) -> None:
    """Without PULL=1 the base stays, as its digest does when it is pinned."""
    deploy = ("python3", "deploy/rollout.py")
    push(f"{registry.address}/base:3.14-slim", "two", project)
    output = run(*deploy, "1", cwd=project)
    assert "packages" not in output
    output = run(*deploy, "--pull", "2", cwd=project)
    assert "app: changed packages\n  - one\t1\n  + two\t1\n" in output
    output = run(*deploy, "--pull", "3", cwd=project)
    assert "app: no changed packages\n" in output


def test_pin_writes_digests(project: Path, registry: Registry) -> None:
    """Again for a newer image; builds use that image; a registry that does not answer changes nothing."""
    dockerfile = project / "Dockerfile"
    pin = ("python3", "-m", "deploy.base_images")
    run(*pin, cwd=project)
    first = dockerfile.read_text()
    pattern = rf"FROM {registry.address}/base:3\.14-slim@sha256:[0-9a-f]{{64}} AS python-default\n"
    assert re.match(pattern, first)
    assert "base:3.14-slim: unchanged" in run(*pin, cwd=project)
    push(f"{registry.address}/base:3.14-slim", "two", project)
    run("docker", "compose", "build", "--pull", "--no-cache", cwd=project)
    assert dockerfile.read_text() == first
    run(*pin, cwd=project)
    assert re.match(pattern, dockerfile.read_text())
    assert dockerfile.read_text() != first
    registry.close()
    assert "no digest found; Dockerfile is as before" in run(*pin, cwd=project, expect=1)
