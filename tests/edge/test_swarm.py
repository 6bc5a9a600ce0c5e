"""The same images on Docker Swarm: updates, rollbacks and lost containers under load."""

import json
import subprocess
import time
from collections.abc import Iterator

import httpx2
import pytest

from checks.project import STACK_FILE
from tests.support.commands import poll, run
from tests.support.swarm import Swarm, Visitors

pytestmark = pytest.mark.alone

NO_CAPABILITIES, BIND_ALONE = "0000000000000000", "0000000000000400"
# Versions that must not replace another one: how their containers differ.
BAD = ('CMD ["python", "-c", "raise SystemExit(\'broken\')"]', 'CMD ["sleep", "600"]')


@pytest.fixture(scope="module")
def swarm(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Version 1 of every application, in two replicas; each test finds what the one before has left."""
    stack = Swarm(tmp_path_factory.mktemp("swarm") / "repository")
    try:
        stack.create()
        stack.deploy("1")
        yield stack
    finally:
        stack.leave()


def test_every_container_has_the_posture_of_the_stack(swarm: Swarm) -> None:
    """What the engine applied to the running containers, read back."""
    options = ("--project-directory", ".", "--file", STACK_FILE, "config", "--format", "json")
    config = json.loads(run("docker", "compose", *options, cwd=swarm.directory, env=swarm.environ))
    for service in [*swarm.applications, "edge"]:
        definition, edge = config["services"][service], service == "edge"
        limits = definition["deploy"]["resources"]["limits"]
        containers = swarm.inspect(service)
        assert len(containers) == (1 if edge else 2), service
        template = "{{.Spec.TaskTemplate.ContainerSpec.StopGracePeriod}}"
        assert (
            run("docker", "service", "inspect", "--format", template, f"{swarm.name}_{service}") == "1m30s\n"
        )
        for container in containers:
            host, own = container["HostConfig"], container["Config"]
            assert host["ReadonlyRootfs"], service
            assert host["CapDrop"] in (["ALL"], ["CAP_ALL"]), service
            assert (host["Memory"], host["PidsLimit"]) == (int(limits["memory"]), limits["pids"])
            assert host["NanoCpus"] == float(limits["cpus"]) * 1e9
            files = definition["ulimits"]["nofile"]["soft"]
            assert [(it["Name"], it["Soft"], it["Hard"]) for it in host["Ulimits"]] == [
                ("nofile", files, files)
            ]
            assert host["LogConfig"]["Config"] == definition["logging"]["options"]
            assert (own["User"], host["Init"]) == ("10001:10001", True)
            folders = {
                it["Target"]: it["TmpfsOptions"]["SizeBytes"]
                for it in host["Mounts"]
                if it["Type"] == "tmpfs"
            }
            assert folders == {"/tmp": 128 * 1024**2}
            assert bool(host["PortBindings"]) == edge, service
            status = swarm.exec(container["Id"], "cat", "/proc/1/status")
            assert f"CapBnd:\t{BIND_ALONE if edge else NO_CAPABILITIES}\n" in status, status
            swarm.exec(container["Id"], "sh", "-c", "echo >/tmp/file && rm /tmp/file && ! echo >/file")


def test_an_update_loses_no_request(swarm: Swarm) -> None:
    """Each new replica is healthy before an old one stops, and the edge finds it in time."""
    swarm.release("2")
    with Visitors(swarm) as visitors:
        swarm.deploy("2")
    print(visitors.report())
    assert visitors.failures == []
    # The last replicas of version 1 may still drain.
    poll(lambda: swarm.images() == {name: {"2"} for name in swarm.applications})


def test_a_version_that_fails_is_rolled_back(swarm: Swarm) -> None:
    """One that ends, and one that is never ready: no visitor notices, and the command names both."""
    bad = dict(zip(swarm.applications, BAD, strict=False))
    before = {name: swarm.containers(name) for name in bad}
    swarm.release("3", **bad)
    with Visitors(swarm) as visitors:
        output = swarm.deploy("3", expect=2)
    print(visitors.report())
    assert visitors.failures == []
    for name in bad:
        assert f"{swarm.name}_{name}: rollback_completed: " in output
        assert before[name].keys() & swarm.containers(name).keys(), f"every replica of {name} was replaced"
    # Another application keeps the new version.
    expected = {name: {"2"} if name in bad else {"3"} for name in swarm.applications}
    poll(lambda: swarm.images() == expected)


def test_a_killed_replica_is_replaced(swarm: Swarm) -> None:
    """At most the requests that it was working on are lost."""
    name = swarm.applications[-1]
    killed, kept = swarm.healthy(name)
    with Visitors(swarm) as visitors:
        time.sleep(2)
        run("docker", "kill", killed)
        poll(lambda: len(swarm.healthy(name)) == 2, 60, lambda: swarm.recent_log(0))
        time.sleep(2)
    print(visitors.report(), visitors.failures)
    assert kept in swarm.healthy(name)
    assert len(visitors.failures) <= 4
    assert not [failure for failure in visitors.failures if not failure.startswith(f"{name} ")]


def test_an_edge_that_is_replaced_says_so_first(swarm: Swarm) -> None:
    """/livez fails while requests still succeed. Then connections are refused, and no answer is wrong."""
    command = ("docker", "service", "update", "--force", "--quiet", f"{swarm.name}_edge")
    with Visitors(swarm) as visitors, subprocess.Popen(command, stdout=subprocess.DEVNULL) as update:
        poll(lambda: httpx2.get(f"{swarm.url}/livez", trust_env=False).status_code == 503)
        answered = visitors.answered
        poll(lambda: visitors.answered > answered + 10)
        assert visitors.failures == []
        assert update.wait(120) == 0
    print(visitors.report())
    refused = ("ConnectError", "RemoteProtocolError", "ReadError")
    assert [failure for failure in visitors.failures if not any(word in failure for word in refused)] == []


def test_django_without_a_database_is_not_restarted(swarm: Swarm) -> None:
    """It says that it is not ready for longer than a failed health check takes, and its containers stay."""
    before = swarm.containers("django")
    program = "import sqlite3, sys; sqlite3.connect('/data/db.sqlite3').execute('ALTER TABLE ' + sys.argv[1])"
    ask = "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"
    swarm.exec(next(iter(before)), "python", "-c", program, "django_migrations RENAME TO away")
    try:
        for container in before:
            assert "503" in run("docker", "exec", container, "python", "-c", ask, expect=1)
        # Three checks, one every two seconds, make a container unhealthy.
        time.sleep(10)
        assert swarm.containers("django") == before
        assert sorted(swarm.healthy("django")) == sorted(before)
    finally:
        swarm.exec(next(iter(before)), "python", "-c", program, "away RENAME TO django_migrations")


def test_a_failed_django_migration_stops_the_deployment(swarm: Swarm) -> None:
    """Nothing is updated, and the output has the migration's own words."""
    before = swarm.images()
    swarm.release("unmigrated", django="ENV DJANGO_DEBUG=perhaps")
    output = swarm.deploy("unmigrated", expect=2)
    assert "DJANGO_DEBUG='perhaps': must be " in output
    assert "migrate has failed. No service was updated" in output
    assert swarm.images() == before


def test_django_secrets_are_files_for_its_user_alone(swarm: Swarm) -> None:
    """Uid 10001 reads them; neither the environment nor the stack contains them."""
    (container, *_) = swarm.inspect("django")
    listing = swarm.exec(container["Id"], "ls", "-ln", "/run/secrets")
    assert listing.count("-r-------- 1 10001 10001") == len(swarm.secrets), listing
    assert not [value for value in swarm.secrets.values() if value in json.dumps(container)]
