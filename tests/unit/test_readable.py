"""`make dev` refuses a working copy that its containers could not read."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.support.commands import HOUSEKEEPING, ROOT, run


@pytest.mark.skipif(sys.platform != "linux", reason="Docker Desktop shares private files as well")
def test_private_code_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """After `umask 077; git clone`; the command in the message suffices."""
    for folder in ROOT.glob("*_app"):
        shutil.copytree(folder, tmp_path / folder.name, ignore=HOUSEKEEPING)
    for path in tmp_path.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    command = (sys.executable, "-m", "checks.readable")
    options = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT)}}
    message = run(*command, expect=1, **options)
    assert "_app: must be readable by user 10001" in message
    run("sh", "-c", message.rpartition("change it with ")[2], cwd=tmp_path)
    run(*command, **options)
