"""The switches of `make dev` lose no edit, whenever it comes."""

import shutil
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import HOUSEKEEPING, ROOT, poll
from tests.support.processes import EDITS, JSON, PROGRAMS, SWITCHES
from tests.support.servers import Server

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("service", JSON)
def test_no_edit_is_lost_while_the_application_loads(service: str, tmp_path: Path) -> None:
    """A server that starts with broken code waits for better code; so it does for what follows at once."""
    copy = Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=HOUSEKEEPING))
    name, shown, addition = EDITS[service]
    original = (copy / name).read_text()
    (copy / name).write_text("import nothing")
    # Uvicorn itself would look only 3 s after a start which file is how old.
    environ = {key: value or "" for key, value in SWITCHES.items()} | {"UVICORN_RELOAD_DELAY": "3"}
    with Server(*PROGRAMS[service], cwd=copy, **environ) as server:
        poll(lambda: "ModuleNotFoundError" in server.log(), 60, server.log)
        (copy / name).write_text(original)
        server.wait()
        (copy / name).write_text(original.replace(shown, shown + addition))

        def edited() -> bool:
            try:
                return "edited" in httpx2.get(server.url, trust_env=False).text
            except httpx2.HTTPError:  # met the server that was just ending
                return False

        poll(edited, 60, server.log)
