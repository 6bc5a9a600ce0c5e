"""A container gains nothing for an intruder and keeps to its limits; an edit is built and served."""

import errno
import ipaddress
import json
import re

import httpx2
import pytest

from tests.support.commands import answers, poll, run
from tests.support.containers import (
    MEBIBYTE,
    WRITE,
    Clone,
    Containers,
    assert_workers,
    complaints,
    inside,
    processes,
    program,
    running,
    server_process,
)
from tests.support.processes import PROGRAMS

# A service, and a module of it alone.
EDITED = [
    ("django", "wsgi_app/django_site/wsgi.py"),
    ("fastapi", "asgi_app/main.py"),
    ("flask", "wsgi_app/flask_site/__init__.py"),
][-1]


def test_no_process_has_a_privilege(place: tuple[Containers, str]) -> None:
    """No process is root, has a capability, or can gain one."""
    expected = {"Uid": {"10001"}, "Gid": {"10001"}, "NoNewPrivs": {"1"}}
    expected |= {f"Cap{kind}": {"0" * 16} for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    for process in processes(*place):
        assert expected == {name: set(process[name]) for name in expected}, process["Arguments"]


def test_only_memory_and_data_are_writable(place: tuple[Containers, str]) -> None:
    """The root file system refuses every write; /tmp and a service's own volumes take them."""
    stack, service = place
    fixed = ("/", "/app", "/venv", "/etc", "/home", "/var/tmp")
    volumes = stack.services[service].get("volumes", [])
    fixed += tuple(volume["target"] for volume in volumes if volume.get("read_only"))
    writable = [volume["target"] for volume in volumes if not volume.get("read_only")]
    assert inside(stack, service, WRITE, *fixed, "/tmp", *writable) == dict.fromkeys(fixed, errno.EROFS)


def test_signals_reach_the_server(place: tuple[Containers, str]) -> None:
    """The server is the child of Docker's init, which forwards signals; there is no shell in between."""
    command = json.loads(place[0].inspect(place[1], "{{json .Config.Cmd}}"))
    assert server_process(*place)["Arguments"][1:] == command[1:]


@pytest.mark.parametrize("service", ["edge", *PROGRAMS])
def test_ports_are_published_on_loopback_only(containers: Containers, service: str) -> None:
    """Another machine reaches nothing, unless EDGE_ADDRESS says otherwise, and then only the edge."""
    ports = json.loads(containers.inspect(service, "{{json .HostConfig.PortBindings}}")) or {}
    published = [binding for bindings in ports.values() for binding in bindings or []]
    assert bool(published) == (service == "edge")
    assert all(ipaddress.ip_address(binding["HostIp"]).is_loopback for binding in published), published


def test_limits_reach_the_engine(containers: Containers) -> None:
    """CPU, memory, processes, logs, stopping time and restarts are bounded for every container."""
    for service, definition in containers.services.items():
        host = json.loads(containers.inspect(service, "{{json .HostConfig}}"))
        limits = definition["deploy"]["resources"]["limits"]
        actual = {name: host[name] for name in ("NanoCpus", "Memory", "PidsLimit", "ReadonlyRootfs")}
        expected = {"NanoCpus": float(limits["cpus"]) * 1e9, "Memory": int(limits["memory"])}
        assert actual == expected | {"PidsLimit": limits["pids"], "ReadonlyRootfs": True}, service
        # Memory and swap together; -1 where the kernel does not count swap.
        assert host["MemorySwap"] in (host["Memory"], -1), service
        assert all(value > 0 for value in actual.values()), f"{service}: 0 is no limit: {actual}"
        assert re.fullmatch(r"[1-9]\d*m", host["LogConfig"]["Config"]["max-size"]), service
        assert int(host["LogConfig"]["Config"]["max-file"]) > 1, service
        assert int(containers.inspect(service, "{{.Config.StopTimeout}}")) > 0, service
        # What runs once must not run again and again.
        restart = "no" if service == "migrate" else "unless-stopped"
        assert host["RestartPolicy"]["Name"] == restart, service


def test_a_boot_logs_no_complaint(clone: Clone) -> None:
    """On a read-only root, every service and the migration start without an error or a warning."""
    for service, log in clone.boot.items():
        assert log.strip(), f"{service} printed nothing"
        assert complaints(log) == [], log


def test_every_line_is_an_event(clone: Clone) -> None:
    """With LOG_FORMAT=json: of the edge, of every service and of the migration, with the same fields."""
    names = {name: name for name in clone.services}
    names |= {"migrate": "django"}
    for service, log in clone.boot.items():
        for line in log.splitlines():
            event = json.loads(line.partition("| ")[2])
            assert event.keys() >= {"time", "level", "message", "service"}, line
            assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}\+00:00", event["time"]), line
            assert event["service"] == names[service]


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_request_is_found_in_the_edge_and_in_the_service(clone: Clone, service: str) -> None:
    """By its id; both lines have the same fields with the same values."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = httpx2.get(f"{clone.urls[service]}/caf%C3%A9?a=secret", headers=headers, trust_env=False)
    identity = answer.headers["x-request-id"]

    def access(name: str) -> dict | None:
        lines = clone.compose("logs", "--no-log-prefix", name).splitlines()
        events = [json.loads(line) for line in lines if identity in line]
        assert all(event["request_id"] == identity for event in events)
        return next((event for event in events if event["message"] == "handled request"), None)

    edge, application = (poll(lambda name=name: access(name), log=clone.log) for name in ("edge", service))
    same = ("client", "method", "path", "status", "trace_id")
    assert [edge[name] for name in same] == [application[name] for name in same]
    assert (edge["path"], edge["status"], edge["trace_id"]) == ("/café", 404, trace)
    for event in (edge, application):
        assert isinstance(event["bytes"], int), event
        assert isinstance(event["duration"], float), event
    assert "secret" not in clone.log()


def test_workers_at_the_default_limits(place: tuple[Containers, str]) -> None:
    """Every service has the documented number of workers, of our own class."""
    assert_workers(*place)
    if program(*place) == "serving.gunicorn":
        poll(lambda: "Using worker: serving." in place[0].log(place[1]))


def test_the_environment_file_counts(clone: Clone) -> None:
    """An optional .env sets limits, .env.SERVICE the workload; PORT moves no published port."""
    for service in clone.urls:
        assert answers(clone.urls[service]), clone.boot[service]
        assert clone.inspect(service, "{{.HostConfig.Memory}}") == str(640 * MEBIBYTE), service
        if program(clone, service) == "serving.gunicorn":
            expected = "workers=2 (io: 1 CPU, at least 2 = 2, memory 640 / 128 MiB = 5)"
            assert expected in clone.boot[service], clone.boot[service]


def test_up_without_a_change_changes_nothing(clone: Clone) -> None:
    """A second `up --build` leaves every running container alone."""
    built = [service["image"] for service in clone.services.values() if "build" in service]
    assert len(built) == len(set(built)), "of two builds of one image, the last one's labels count"
    before = running(clone)
    clone.up()
    assert running(clone) == before


def test_up_serves_edited_code(clone: Clone) -> None:
    """A plain `up` rebuilds what was edited, serves it, and leaves the other services running."""
    name, module = EDITED
    before, image = running(clone), clone.inspect(name, "{{.Image}}")
    with (clone.directory / module).open("a") as source:
        source.write("\nprint('edited', flush=True)\n")
    assert "edited" not in clone.log(name)
    clone.compose("up", "--detach")
    poll(lambda: "edited" in clone.log(name), 60, lambda: clone.log(name))
    after = running(clone)
    assert [service for service in after if after[service] != before[service]] == [name]
    run("docker", "rmi", image)
