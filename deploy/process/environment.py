"""Variables of process mode: from the shell, .env, .env.SERVICE and .env.example, in this order."""

import io
import os
import re
from pathlib import Path

from dotenv import dotenv_values

from deploy.process.servers import SERVICES
from serving import settings

# A line that Compose and this module would read differently: Compose replaces $NAME, and a blank
# before # begins a comment only without quotes.
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?(\w+)\s*=\s*(.*)")


def read(path: Path) -> dict[str, str]:
    """The variables of an environment file; {} when there is no such file.

    Raises SettingError for a value that Compose would change.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.splitlines(), 1):
        found = _ASSIGNMENT.fullmatch(line)
        if found and "$" in found[2] and not found[2].startswith("'"):
            raise settings.SettingError(
                f"{path.name}, line {number}: {found[1]}: Compose would replace what follows $;"
                f" write the value in 'single quotes'"
            )
    return {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}


def deployment(root: Path) -> dict[str, str]:
    """What applies to every service."""
    return read(root / ".env.example") | read(root / ".env") | dict(os.environ)


def of_service(root: Path, service: str) -> dict[str, str]:
    """What one service's process gets."""
    general = deployment(root)
    of_file = read(root / f".env.{service}")
    own = {
        "HOST": "127.0.0.1",
        "PORT": general[f"{service.upper()}_PORT"],
        # No edge is in front that would have to notice.
        "DRAIN_SECONDS": "0",
        # Its name in JSON log lines, as each image has it.
        "SERVICE": service,
    }
    if "METRICS_PORT" not in of_file:
        # On one machine, each exporter needs a port of its own.
        own["METRICS_PORT"] = str(int(general["METRICS_PORT"]) + SERVICES.index(service))
    return general | of_file | dict(os.environ) | own
