"""A database of Django is in a network of its own."""

import json
from collections.abc import Iterator

import pytest

from tests.support.commands import poll, run
from tests.support.containers import Containers
from tests.support.networks import GATEWAY, REACH, addresses, reached
from tests.support.processes import PROGRAMS

LISTEN = "import http.server; http.server.ThreadingHTTPServer(('', 5432), None).serve_forever()"


@pytest.fixture
def django_database(containers: Containers) -> Iterator[str]:
    """The name of something that listens on Django's data network, as a database does."""
    name = f"{containers.project}-database"
    network = ("--network", f"{containers.project}_django-data", "--network-alias", "db")
    image = containers.inspect("django", "{{.Image}}")
    run("docker", "run", "--detach", "--name", name, *network, image, "python", "-c", LISTEN)
    try:
        poll(lambda: reached(containers, "django", "db:5432"))
        yield name
    finally:
        run("docker", "rm", "--force", name)


def test_the_database_of_django_is_its_own(containers: Containers, django_database: str) -> None:
    """Django and its migrations reach it; no other application does, nor it the world."""
    places = ["db:5432", *(f"{address}:5432" for address in addresses(django_database))]
    assert reached(containers, "django", *places) == places
    migrate = ["run", "--rm", "--no-TTY", "--no-deps", "migrate", "python", "-c"]
    assert json.loads(containers.compose(*migrate, REACH, *places).splitlines()[-1]) == places
    for other in set(PROGRAMS) - {"django"}:
        assert reached(containers, other, *places) == [], other
    gateway = run("docker", "exec", django_database, "python", "-c", GATEWAY)
    assert json.loads(gateway) == "", "a network without a way out has no gateway"
