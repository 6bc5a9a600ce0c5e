"""`make lock`: what stays and what changes, in a small project, with the versions of the package index."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, run

# Older than the newest versions.
LOCKED = {"idna": "3.7", "certifi": "2024.7.4"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two packages that are locked, and a third one that has been added since, to a group of its own."""
    (tmp_path / ".venv").mkdir()
    (tmp_path / "requirements").mkdir()
    shutil.copy(ROOT / "requirements/lock.py", tmp_path / "requirements")
    pins = "".join(f"{name}=={version}\n" for name, version in LOCKED.items())
    (tmp_path / "requirements/web.txt").write_text(pins)
    ask(tmp_path, web=["idna", "certifi"], tools=["idna", "six"])
    return tmp_path


def ask(project: Path, **groups: list[str]) -> None:
    """Write the requirements of each group to pyproject.toml."""
    lines = [f"{name} = {requirements}\n" for name, requirements in groups.items()]
    (project / "pyproject.toml").write_text("".join(["[dependency-groups]\n", *lines]))


def lock(project: Path, *arguments: str) -> dict[str, dict[str, str]]:
    """The versions in each lock file afterwards; each has a hash."""
    run(sys.executable, "requirements/lock.py", *arguments, cwd=project)
    files = (project / "requirements").glob("*.txt")
    pins = r"^([\w-]+)==(\S+) \\\n    --hash=sha256:"
    return {file.stem: dict(re.findall(pins, file.read_text(), re.MULTILINE)) for file in files}


def test_a_new_requirement_leaves_the_locked_versions(project: Path) -> None:
    """In every group; the new one gets its newest version."""
    found = lock(project)
    assert found["tools"].pop("six")
    assert found == {"web": LOCKED, "tools": {"idna": LOCKED["idna"]}}


def test_a_requirement_that_excludes_the_locked_version_changes_it_alone(project: Path) -> None:
    """In every group, also where nothing asks for a newer one."""
    ask(project, web=["idna", "certifi"], tools=["idna>3.7"])
    found = lock(project)
    assert found["web"]["idna"] == found["tools"]["idna"] != LOCKED["idna"]
    assert found["web"]["certifi"] == LOCKED["certifi"]


def test_upgrade_takes_new_versions(project: Path) -> None:
    """UPGRADE=1, of every package; a group that is gone loses its file."""
    ask(project, web=["idna", "certifi"])
    (project / "requirements/old.txt").write_text("six==1.16.0\n")
    found = lock(project, "--upgrade")
    assert found.keys() == {"web"}
    assert LOCKED.items().isdisjoint(found["web"].items())
