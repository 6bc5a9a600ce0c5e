"""The files of this project agree with each other."""

from pathlib import Path

import pytest

from checks import kubernetes
from checks.doctor import findings
from checks.project import Project, has_compose
from tests.support.commands import ROOT, lacking


def examined(env_file: Path) -> Project:
    """The project with this .env; it has no finding, and every file that is here was read."""
    if not has_compose():
        lacking("no Docker Compose to resolve docker-compose.yml with")
    project = Project(ROOT, env_file=env_file)
    missing = [reason for reason in project.not_checked if not reason.endswith(": not here")]
    assert findings(project) + missing == []
    return project


def test_our_own_files_agree() -> None:
    """Every application has a server whose settings were read."""
    servers = [it for it in examined(Path("/dev/null")).containers if it.is_long_running and not it.is_proxy]
    assert servers
    assert [it.name for it in servers if it.server is None] == []


def test_our_own_files_agree_about_the_fastapi_hybrid(tmp_path: Path) -> None:
    """FASTAPI_TARGET=fastapi-hybrid: Gunicorn's settings and those of Uvicorn in its workers."""
    (tmp_path / ".env").write_text("FASTAPI_TARGET=fastapi-hybrid\n")
    (hybrid,) = (it for it in examined(tmp_path / ".env").containers if it.name == "fastapi")
    assert hybrid.gunicorn is not None
    assert hybrid.uvicorn is not None


@pytest.mark.parametrize("name", ["small", "production"])
def test_our_own_kubernetes_manifests_agree(name: str) -> None:
    """Each overlay has the images of this project, and every rule for containers applies to them."""
    overlays, reason = kubernetes.overlays(ROOT)
    if reason:
        lacking(reason)
    overlay = next(it for it in overlays if it.folder.endswith(f"/{name}"))
    assert findings(overlay) == []
    servers = [it for it in overlay.containers if it.is_long_running and not it.is_proxy]
    assert servers
    assert [it.name for it in servers if it.server is None or not it.stage.base] == []
    assert overlay.edge is not None
    assert overlay.caddyfile is not None
