"""A service recovers from crashes, freezes and damage without help, and sizes itself by its limits."""

import pytest

from tests.support.commands import answers, poll, run
from tests.support.containers import (
    Clone,
    Containers,
    assert_workers,
    children,
    complaints,
    running,
    server_process,
    wait_until,
)
from tests.support.processes import PROGRAMS

pytestmark = pytest.mark.slow
# One service of each server.
PAIR = tuple({command[0]: service for service, command in PROGRAMS.items()}.values())


def send(stack: Containers, service: str, name: str, *pids: int) -> None:
    """Send a signal to processes of the container, init excluded: the kernel protects it from within."""
    code = "import os, signal, sys; [os.kill(int(p), signal.Signals[sys.argv[1]]) for p in sys.argv[2:]]"
    stack.exec(service, "python", "-c", code, f"SIG{name}", *map(str, pids))


@pytest.mark.parametrize(("cpus", "memory"), [("0.5", "512m"), ("2", "160m"), ("2", "512m")])
def test_workers_follow_the_limits(limited: Containers, cpus: str, memory: str) -> None:
    """Workers are as many as the CPU limit asks for and as the memory limit can hold."""
    if float(cpus) > int(run("docker", "info", "--format", "{{.NCPU}}")):
        pytest.skip("the engine has too few CPUs")
    limited.environ |= {"CPUS": cpus, "MEMORY": memory}
    limited.services = limited.config()["services"]
    limited.up(*PAIR)
    for service in PAIR:
        assert_workers(limited, service)
    assert complaints(limited.log()) == []


def test_a_killed_server_is_restarted(clone: Clone) -> None:
    """When the server dies, the engine starts the container again, and the service is healthy again."""
    for service in clone.urls:
        pid, image = clone.inspect(service, "{{.State.Pid}} {{.Image}}").split()
        # From outside: the engine takes its own `kill` for an operator's wish and restarts nothing.
        kill = ("python", "-c", f"import os; os.kill({pid}, 9)")
        run("docker", "run", "--rm", "--pid", "host", "--user", "0", image, *kill)
        poll(
            lambda service=service, ended=pid: clone.inspect(service, "{{.State.Pid}}") not in (ended, "0"),
            log=lambda service=service: clone.log(service),
        )
    wait_until(clone, "healthy", *clone.urls)
    for service in clone.urls:
        assert answers(clone.urls[service]), clone.log(service)


def test_compose_restart_keeps_the_containers(clone: Clone) -> None:
    """`docker compose restart` starts the same containers again, and every service answers."""
    before = running(clone)
    clone.compose("restart")
    wait_until(clone, "healthy", "edge", *clone.urls)
    after = running(clone)
    for service in clone.urls:
        assert answers(clone.urls[service]), clone.log(service)
        assert before[service][0] == after[service][0], service
        assert before[service][1] != after[service][1], service


def test_a_frozen_service_is_unhealthy(clone: Clone) -> None:
    """A service whose processes stand still becomes unhealthy, although its port accepts connections."""
    frozen = {}
    for service in clone.urls:
        server = int(server_process(clone, service)["Pid"][0])
        frozen[service] = (server, *children(clone, service))
    try:
        for service, pids in frozen.items():
            send(clone, service, "STOP", *pids)
        wait_until(clone, "unhealthy", *frozen)
    finally:
        for service, pids in frozen.items():
            send(clone, service, "CONT", *pids)
    wait_until(clone, "healthy", *frozen)
