"""An application reaches the world, and no other application; the edge reaches all of them."""

import socket
from itertools import permutations

import pytest

from tests.support.containers import Containers, inside
from tests.support.networks import GATEWAY, addresses, reached
from tests.support.processes import PROGRAMS


@pytest.mark.parametrize(("service", "other"), [*permutations(PROGRAMS, 2)])
def test_an_application_reaches_no_other_one(containers: Containers, service: str, other: str) -> None:
    """Neither by the names that Compose gives, nor by address; by the same means, it reaches itself."""

    def places(name: str) -> list[str]:
        hosts = [name, f"{containers.project}-{name}-1", *addresses(containers.container(name))]
        return [f"{host}:8000" for host in hosts]

    assert reached(containers, service, *places(service)) == places(service)
    assert reached(containers, service, *places(other)) == []


@pytest.mark.parametrize("service", PROGRAMS)
def test_an_application_reaches_the_world(containers: Containers, service: str) -> None:
    """A connection to the engine's machine, which leads further, as requests to other hosts do."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        place = f"{inside(containers, service, GATEWAY)}:{listener.getsockname()[1]}"
        assert reached(containers, service, place) == [place]


@pytest.mark.parametrize("service", PROGRAMS)
def test_the_edge_reaches_every_application(containers: Containers, service: str) -> None:
    """By the name of a replica."""
    name = f"{containers.project}-{service}-1"
    containers.exec("edge", "wget", "-q", "-Y", "off", "-T", "5", "-O", "-", f"http://{name}:8000/livez")
