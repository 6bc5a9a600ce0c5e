"""`make down` in containers."""

from pathlib import Path

import pytest

from tests.support.commands import run
from tests.support.containers import Clone

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("profile", "service"),
    [
        ("metrics", "prometheus"),
        ("postgres", "postgres"),
    ],
)
def test_down_stops_a_profile_that_is_switched_off(
    engine: None, tmp_path: Path, profile: str, service: str
) -> None:
    """No container and no network of the project is left, whatever COMPOSE_PROFILES is by then."""
    stack = Clone(tmp_path / "repository", COMPOSE_PROFILES=profile)
    stack.environ["COMPOSE_PROJECT_NAME"] = stack.project
    label = ("--quiet", "--filter", f"label=com.docker.compose.project={stack.project}")
    try:
        stack.compose("up", "--detach", "--wait", service)
        assert run("docker", "ps", *label)
        stack.environ["COMPOSE_PROFILES"] = ""
        run("make", "down", "RUNTIME=docker", cwd=stack.directory, env=stack.environ)
        assert run("docker", "ps", "--all", *label) == ""
        assert run("docker", "network", "ls", *label) == ""
    finally:
        # Its volumes are the profile's.
        stack.environ["COMPOSE_PROFILES"] = profile
        stack.down()
