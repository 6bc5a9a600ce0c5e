"""`make swarm-deploy VERSION=1.2`: run deploy/swarm/stack.yml on the Swarm that `docker` talks to.

1. Resolve the stack as Compose does, with .env and .env.SERVICE: `docker stack deploy` reads neither.
2. Run its jobs, such as database migrations, to their end. If one fails, nothing is updated.
3. Update the services, wait, and fail with the reason if Swarm has rolled one back.

Images are built and pushed before. It needs Docker with Compose and Python 3.9 or newer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

STACK_FILE = "deploy/swarm/stack.yml"
EDGE = "edge"
# Tasks in these states have ended without success.
FAILED = ("Failed", "Rejected", "Orphaned", "Shutdown")
# States of an update that did not succeed.
NOT_UPDATED = ("paused", "rollback_completed", "rollback_paused", "rollback_started")
# Seconds that all updates may take together.
UPDATED_WITHIN = 1800

Definition = dict[str, Any]


def docker(*words: str, text: str = "", check: bool = True) -> str:
    """The output of a docker command; unless `check` is false, exit with its error if it fails."""
    result = subprocess.run(["docker", *words], input=text, capture_output=True, text=True, check=False)
    if check and result.returncode:
        sys.exit(f"docker {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout.strip()


def resolve() -> tuple[str, Definition]:
    """The name of the stack, and its file as `docker stack deploy` accepts it."""
    options = ("--project-directory", ".", "--file", STACK_FILE)
    stack: Definition = json.loads(docker("compose", *options, "config", "--format", "json"))
    stack["services"] = {key: adapt(service) for key, service in stack["services"].items()}
    kept = ("services", "networks", "volumes", "secrets", "configs")
    return stack["name"], {key: stack[key] for key in kept if key in stack}


def adapt(service: Definition) -> Definition:
    """The service with numbers as the schema of stacks wants them, which is older than that of Compose."""
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if "cpus" in limits:
        limits["cpus"] = str(limits["cpus"])
    for port in service.get("ports", []):
        port["published"] = int(port["published"])
    for mount in service.get("volumes", []):
        if "size" in mount.get("tmpfs", {}):
            mount["tmpfs"]["size"] = int(mount["tmpfs"]["size"])
    for file in service.get("secrets", []) + service.get("configs", []):
        if "mode" in file:
            file["mode"] = int(file["mode"], 8)
    return {key: value for key, value in service.items() if value is not None}


def is_job(service: Definition) -> bool:
    """Whether this runs to its end, and is no service."""
    return str(service.get("deploy", {}).get("mode", "")).endswith("-job")


def check_versions(stack: Definition) -> None:
    """Exit if the deployment could not be rolled back, because a tag does not name one image."""
    for name, service in stack["services"].items():
        if name != EDGE and service["image"].endswith(":latest"):
            sys.exit(
                f"VERSION=latest: must be a tag that names one image ({service['image']}), because Swarm "
                "returns to the tag before; change it to make swarm-deploy VERSION=1.0"
            )


def check_images(name: str, stack: Definition) -> None:
    """Exit if an image that no registry has is not on this machine: its tasks would wait for it forever."""
    for service in stack["services"].values():
        image = service["image"]
        if image.startswith(f"{name}-") and not docker("image", "ls", "--quiet", image):
            sys.exit(f"{image}: not on this machine; VERSION=... docker compose build makes it")


def check_nodes() -> None:
    """Exit if this is no manager of a Swarm, or if there would be no edge."""
    if not docker("node", "ls", "--filter", "node.label=edge=true", "--quiet"):
        sys.exit(
            "no node has the label edge=true, so no edge would run: "
            "docker node update --label-add edge=true NODE; docker node ls shows the names"
        )


def deploy(name: str, stack: Definition, services: Definition, *options: str) -> int:
    """Run `docker stack deploy` for these services, with its output; returns its exit code."""
    registry = any("/" in service["image"] for service in services.values())
    # A tag that has not changed keeps its image: only a new EDGE_VERSION replaces the edge.
    images = ["--with-registry-auth", "--resolve-image", "changed"]
    images = images if registry else ["--resolve-image", "never"]
    command = ["docker", "stack", "deploy", *images, *options, "--compose-file", "-", name]
    text = json.dumps(stack | {"services": services})
    try:
        return subprocess.run(command, input=text, text=True, check=False, timeout=UPDATED_WITHIN).returncode
    except subprocess.TimeoutExpired:
        sys.exit(f"not updated within {UPDATED_WITHIN} s: docker stack ps --no-trunc {name}")


def tasks(service: str) -> list[dict[str, str]]:
    """The tasks of a service, the newest first: Name, Image, CurrentState, Error and so on."""
    lines = docker("service", "ps", "--no-trunc", "--format", "json", service).splitlines()
    return [json.loads(line) for line in lines]


def run_job(name: str, stack: Definition, job: str) -> None:
    """Run a job to its end and show its log; exit if it fails."""
    service = f"{name}_{job}"
    # A job of the same version would not run again.
    docker("service", "rm", service, check=False)
    if code := deploy(name, stack, {job: stack["services"][job]}, "--detach=true"):
        sys.exit(code)
    state = ""
    while not state.startswith(("Complete", *FAILED)):
        time.sleep(0.5)
        for task in tasks(service)[:1]:
            before, state = state, task["CurrentState"]
            if state.partition(" ")[0] != before.partition(" ")[0]:
                print(f"{job}: {state} {task['Error']}", flush=True)
    subprocess.run(["docker", "service", "logs", "--raw", service], check=False)
    if not state.startswith("Complete"):
        sys.exit(f"{job} has failed. No service was updated; docker service logs {service} has the log")


def not_updated(name: str) -> list[str]:
    """Why a service was not updated, a line for each of them."""
    found = []
    for service in docker("stack", "services", "--format", "{{.Name}}", name).split():
        status = json.loads(docker("service", "inspect", "--format", "{{json .UpdateStatus}}", service))
        if status and status.get("State") in NOT_UPDATED:
            errors = [task["Error"] for task in tasks(service) if task["Error"]]
            found.append(f"{service}: {status['State']}: {status['Message']}: {', '.join(errors[:1])}")
    return found


def main() -> None:
    """The command line."""
    name, stack = resolve()
    check_versions(stack)
    check_nodes()
    check_images(name, stack)
    services = stack["services"]
    for job in [job for job in services if is_job(services[job])]:
        run_job(name, stack, job)
    running = {key: service for key, service in services.items() if not is_job(service)}
    # Removes the job, and services that the file does not have any more.
    code = deploy(name, stack, running, "--prune", "--detach=false")
    found = not_updated(name)
    sys.exit("\n".join(found) or code)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; Swarm goes on with what it has begun: docker stack ls")
