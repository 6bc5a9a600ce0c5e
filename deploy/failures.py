"""`python3 -m deploy.failures`: why `docker compose up` failed; the cause is in the last lines.

Prints the end of the log of each container that does not run or is unhealthy, and then one line for
each: its state and the last line of its log. Containers that run well are not shown. The exit code is 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LOG_LINES = 20


def docker(*arguments: str) -> str:
    """The output of a docker command, standard error included."""
    command = ["docker", *arguments]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return found.stdout


def has_failed(container: dict[str, Any]) -> bool:
    """Whether a container has started and does not do its work; a one-shot that succeeded does not count."""
    if container["State"] == "running":
        return container["Health"] in ("starting", "unhealthy")
    return container["State"] != "created" and bool(container["ExitCode"])


def state(container: dict[str, Any]) -> str:
    """What is wrong with a container, in a few words."""
    if container["State"] == "running":
        return f"is not healthy ({container['Health']})"
    return f"ended with exit code {container['ExitCode']}"


def main() -> None:
    """The command line."""
    lines = docker("compose", "ps", "--all", "--format", "json").splitlines()
    containers = [json.loads(line) for line in lines if line.startswith("{")]
    causes = []
    for container in filter(has_failed, containers):
        log = docker("logs", "--tail", str(LOG_LINES), container["Name"]).strip()
        print(f"\nThe log of {container['Name']}:\n{log}")
        last = log.splitlines()[-1] if log else "its log is empty"
        causes.append(f"{container['Service']} {state(container)}: {last}")
    sys.exit("\n".join(["", *causes]) if causes else 1)


if __name__ == "__main__":
    main()
