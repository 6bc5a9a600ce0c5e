"""`make deploy` and `make rollback`: replace all running replicas, and lose no request.

`python3 rollout.py [VERSION | --rollback]` beside docker-compose.yml; any Python from 3.9 on.
Build the images, or fetch them where there are no sources; migrate; start a candidate of each service,
where the edge does not see it. If one does not become healthy and stay so, all go, and nothing has
changed. Else replicas are replaced one at a time: pre_stop, until the edge sends the old one nothing
more, then SIGTERM. From then on .env names the version, for Compose.

Why not what is there: `docker compose up` stops a replica before it starts its successor, without
pre_stop, and `--scale` numbers new ones upwards for ever, while the edge knows four names; so candidates
hold the places until Compose has filled them from 1 again. docker-rollout scales upwards as well.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

# Seconds: to become healthy; to stay so before anyone depends on it; until the edge has seen it.
PATIENCE, TRIAL, SEEN = 90, 5, 1
# The edge asks PROJECT-SERVICE-1 to -4.
PLACES = {1, 2, 3, 4}
ENV = Path(".env")


def docker(*command, check=True):
    """The command's output; ends the program with it when the command fails."""
    try:
        return subprocess.check_output(["docker", *command], stderr=subprocess.STDOUT, text=True).strip()
    except subprocess.CalledProcessError as error:
        return sys.exit(f"{error}\n{error.output}") if check else error.output


def prove(name):
    """Wait until it is healthy, or end with the reason and the log's tail; a candidate has one chance."""
    deadline = time.monotonic() + PATIENCE
    while True:
        now = json.loads(docker("inspect", name))[0]
        state, alive = now["State"], now["State"]["Running"] and not now["RestartCount"]
        health = state.get("Health", {"Status": "healthy"})
        if alive and health["Status"] == "healthy":
            return
        failed = not alive or (name.endswith("-candidate") and health["Status"] == "unhealthy")
        if failed or time.monotonic() > deadline:
            said = "".join(probe["Output"] for probe in (health.get("Log") or [])[-1:])
            reason = f"{health['Status']}: {said}" if alive else f"ended with exit code {state['ExitCode']}"
            sys.exit(f"{name}: {reason}\n{docker('logs', '--tail', '20', name, check=False)}")
        time.sleep(0.2)


class Service:
    """A service of the Compose project, and the places of its replicas."""

    def __init__(self, project, name, definition):
        self.name, self.definition = name, definition
        self.prefix, self.candidate = f"{project}-{name}-", f"{project}-{name}-candidate"

    def places(self):
        """The numbers that are taken."""
        names = docker("ps", "--all", "--filter", f"name=^/{self.prefix}", "--format", "{{.Names}}").split()
        return sorted(int(end) for end in (name[len(self.prefix) :] for name in names) if end.isdigit())

    def propose(self):
        """Start a candidate."""
        docker("compose", "run", "-d", "--no-deps", "--pull", "never", "--name", self.candidate, self.name)

    def retire(self, place):
        """Let the edge see the successor, and then that this one is unready; stop it and remove it."""
        time.sleep(SEEN)
        for hook in self.definition.get("pre_stop", []):
            docker("exec", f"{self.prefix}{place}", *hook["command"], check=False)
        docker("stop", f"{self.prefix}{place}")
        docker("rm", "--volumes", f"{self.prefix}{place}")

    def replace(self):
        """Give the replicas' places to candidates from the last one down, and back from the first one up."""
        for number, place in enumerate(reversed(self.places())):
            if number:
                self.propose()
                prove(self.candidate)
            docker("rename", self.candidate, f"{self.prefix}{max(PLACES - set(self.places()))}")
            self.retire(place)
        for number, place in enumerate(self.places(), 1):
            scale = ("--no-recreate", "--scale", f"{self.name}={number}")
            docker("compose", "up", "--detach", "--no-deps", "--no-build", *scale, self.name)
            prove(f"{self.prefix}{number}")
            self.retire(place)


def provide(services, rollback):
    """Build the images; without sources, or for a rollback, fetch those that are not here."""
    builds = {it.name: it.definition["build"]["context"] for it in services if "build" in it.definition}
    if not rollback and all(Path(context, "Dockerfile").exists() for context in builds.values()):
        docker("compose", "build", *builds)
    for image in {service.definition["image"] for service in services}:
        docker("image", "ls", "--quiet", image) or docker("pull", image)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version", nargs="?", default=time.strftime("%Y%m%d-%H%M%S"))
    parser.add_argument("--rollback", action="store_true", help="return to .env's PREVIOUS_VERSION")
    arguments = parser.parse_args()
    before = ENV.read_text() if ENV.exists() else ""
    known = dict(re.findall(r"""^(\w*VERSION)=["']?([^\s"']+)""", before, re.MULTILINE))
    current, previous = known.get("VERSION", "latest"), known.get("PREVIOUS_VERSION", "")
    version = os.environ["VERSION"] = previous if arguments.rollback else arguments.version
    if not re.fullmatch(r"\w[\w.-]{0,127}", version):
        sys.exit(f"VERSION={version!r}: must be an image's tag")
    config = json.loads(docker("compose", "--profile", "*", "config", "--format", "json"))
    services = [Service(config["name"], *pair) for pair in config["services"].items()]
    services = [it for it in services if it.places()]
    once = [it for it in services if it.definition.get("restart") == "no"]
    # What publishes a port can not run twice: the edge stays.
    rolling = [it for it in services if it not in once and not it.definition.get("ports")]
    rolling or sys.exit("nothing runs: start with docker compose up --detach --wait")
    for it in (it for it in rolling if set(it.places()) >= PLACES):
        fix = f"docker compose up --detach --no-build --no-recreate --scale {it.name}=3 {it.name}"
        sys.exit(f"{it.name}: no place is free for a successor: {fix}")
    try:
        provide(once + rolling, arguments.rollback)
        # Compose compares a container with .env as well, so it changes before the first one starts.
        rest = [line for line in before.splitlines() if not re.match("(PREVIOUS_)?VERSION=", line)]
        previous = previous if version == current else current
        ENV.write_text("\n".join([f"VERSION={version}", f"PREVIOUS_VERSION={previous}", *rest, ""]))
        for it in [] if arguments.rollback else once:
            docker("compose", "run", "--rm", "--no-deps", "--pull", "never", it.name)
        for it in rolling:
            it.propose()
        for seconds in (TRIAL, 0):
            for it in rolling:
                prove(it.candidate)
            time.sleep(seconds)
    except BaseException:
        docker("rm", "--force", "--volumes", *(it.candidate for it in rolling), check=False)
        ENV.write_text(before) if before else ENV.unlink(missing_ok=True)
        raise
    for it in rolling:
        it.replace()
        print(f"{it.name}: {version}", flush=True)


if __name__ == "__main__":
    main()
