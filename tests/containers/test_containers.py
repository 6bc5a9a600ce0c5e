"""A container gains nothing for an intruder, keeps to its limits, and recovers without help."""

import errno
import json

from tests.support.commands import answers, poll, run
from tests.support.containers import (
    MEBIBYTE,
    WRITE,
    Clone,
    Containers,
    inside,
    processes,
    program,
    running,
    server_process,
)

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
    volumes = [volume["target"] for volume in stack.services[service].get("volumes", [])]
    assert inside(stack, service, WRITE, *fixed, "/tmp", *volumes) == dict.fromkeys(fixed, errno.EROFS)


def test_signals_reach_the_server(place: tuple[Containers, str]) -> None:
    """The server is the child of Docker's init, which forwards signals; there is no shell in between."""
    command = json.loads(place[0].inspect(place[1], "{{json .Config.Cmd}}"))
    assert server_process(*place)["Arguments"][1:] == command[1:]


def test_the_environment_file_counts(clone: Clone) -> None:
    """An optional .env sets limits, .env.SERVICE the workload; PORT moves no published port."""
    for service in clone.urls:
        assert answers(clone.urls[service]), clone.boot[service]
        assert clone.inspect(service, "{{.HostConfig.Memory}}") == str(640 * MEBIBYTE), service
        if program(clone, service) == "serving.gunicorn":
            assert "workers=5 (io: 4 x 1 CPU + 1 = 5" in clone.boot[service], clone.boot[service]


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
