"""The README's commands run as written, and its table is the truth."""

import json
import re
from pathlib import Path

import pytest
from dotenv import dotenv_values

from tests.support.commands import ROOT, addresses, run
from tests.support.containers import Containers
from tests.support.files import COMMANDS, README


def test_every_make_command_of_the_readme_exists() -> None:
    """`make --dry-run` knows each of them; the other tests run what they do."""
    named = {word for line in COMMANDS if line.startswith("make ") for word in line.split()[1:2]}
    named |= set(re.findall(r"`make (\w+)", README))
    assert {"up", "down", "test", "lock", "logs"} <= named
    for target in named:
        run("make", "--dry-run", target, "RUNTIME=process")
    listed = run("make", "help")
    assert all(f"  {target} " in listed for target in named)


def test_the_copied_env_example_changes_nothing(containers: Containers) -> None:
    """`cp .env.example .env` is harmless: every line in it is the default."""
    fresh = ("docker", "compose", "--project-directory", str(ROOT), "--env-file")
    resolved = [run(*fresh, file, "config", "--format", "json") for file in ("/dev/null", ".env.example")]
    without, copied = (json.loads(text)["services"] for text in resolved)
    assert without == copied


def test_the_table_names_every_service_and_its_port(containers: Containers) -> None:
    """README and docker-compose.yml agree on names and default ports."""
    rows = dict(re.findall(r"^\|(?:<!--.*?-->)? `([\w-]+)` \|.*<(http://[\d.:]+)>", README, re.MULTILINE))
    ports = {name: port for name, port in dotenv_values(ROOT / ".env.example").items() if port}
    assert addresses(containers.services, ports) == rows


@pytest.mark.parametrize(
    ("file", "target"),
    [
        (file, target)
        for file in (ROOT / "README.md", *ROOT.glob(".github/*.md"))
        for target in re.findall(r"\]\(([^):#]+)\)", file.read_text())
    ],
)
def test_every_link_leads_somewhere(file: Path, target: str) -> None:
    """A relative link names a file of the repository."""
    assert (file.parent / target).exists()
