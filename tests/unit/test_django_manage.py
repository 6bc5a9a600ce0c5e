"""`make manage`: Django's commands in the container."""

from pathlib import Path

import pytest

from tests.support.commands import ROOT, run


@pytest.mark.parametrize("command", ["check", "makemigrations"])
def test_a_command_of_django_does_not_replace_a_deployed_image(command: str, tmp_path: Path) -> None:
    """It would have the deployed tag, and the code of the working copy."""
    make = ("make", "--dry-run", "--file", str(ROOT / "Makefile"), "manage-docker", f"ARGS={command}")
    assert " --build " in run(*make, "RUNTIME=docker", cwd=tmp_path)
    (tmp_path / ".env").write_text("VERSION=1.1\nPREVIOUS_VERSION=1.0\n")
    assert "--build" not in run(*make, "RUNTIME=docker", cwd=tmp_path)
