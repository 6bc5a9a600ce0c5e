"""What the files of the repository say."""

import re
from functools import cache
from pathlib import Path

from checks.project import Container, Project, has_compose
from tests.support.commands import ROOT, lacking

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("deploy.md", "operations.md"))]
# The lines of the pages' shell blocks.
COMMANDS = [
    line.partition("  #")[0].strip()
    for page in PAGES
    if page.exists()
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@cache
def processes() -> dict[str, Container]:
    """What our files would run with nothing set, by service."""
    if not has_compose():
        lacking("no Docker Compose to resolve docker-compose.yml with")
    project = Project(ROOT, env_file=Path("/dev/null"))
    return {container.name: container for container in project.containers}


def long_running() -> dict[str, dict]:
    """The services that stay."""
    return {name: it.definition for name, it in processes().items() if it.is_long_running}
