"""`python3 -m deploy.failures`: why `docker compose up` failed; the cause is in the last lines.

Prints the end of the log of each container that has ended or is unhealthy, and then one line for each:
what is wrong, and the last line of its log. Containers that work are not shown. The exit code is 1.
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


def failure(container: dict[str, Any]) -> str:
    """What is wrong with a container, in a few words; "" if it works, or has not started or done its work."""
    state = container["State"]
    health = state.get("Health", {}).get("Status", "")
    if state["Status"] in ("created", "paused") or health == "healthy":
        return ""
    if container["RestartCount"]:
        return f"was restarted {container['RestartCount']} times"
    if state["Running"]:
        return "is not healthy" if health == "unhealthy" else ""
    return f"ended with exit code {state['ExitCode']}" if state["ExitCode"] else ""


def main() -> None:
    """The command line."""
    names = docker("compose", "ps", "--all", "--quiet").split()
    containers: list[dict[str, Any]] = json.loads(docker("inspect", *names)) if names else []
    causes = []
    for container in containers:
        if what := failure(container):
            name = container["Name"].lstrip("/")
            log = docker("logs", "--tail", str(LOG_LINES), name).strip() or "its log is empty"
            print(f"\nThe log of {name}:\n{log}")
            service = container["Config"]["Labels"]["com.docker.compose.service"]
            causes.append(f"{service} {what}: {log.splitlines()[-1]}")
    sys.exit("\n".join(["", *causes]) if causes else 1)


if __name__ == "__main__":
    main()
