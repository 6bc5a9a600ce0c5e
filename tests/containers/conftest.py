"""Stacks that tests may break."""

import json
from collections.abc import Iterator

import pytest

from tests.support.containers import Clone, Containers
from tests.support.processes import PROGRAMS


@pytest.fixture(scope="module")
def clone(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A stack to break and to edit: with a .env, and with quick health checks; leave it healthy."""
    directory = tmp_path_factory.mktemp("clone")
    # Not quicker: on a busy machine, Python itself may take two seconds to start.
    quick = {"healthcheck": {"interval": "2s", "timeout": "5s", "retries": 2}}
    (directory / "quick.yml").write_text(json.dumps({"services": dict.fromkeys(PROGRAMS, quick)}))
    stack = Clone(directory / "repository", directory / "quick.yml")
    (stack.directory / ".env").write_text("PORT=9999\nMEMORY=640m\nLOG_FORMAT=json\n")
    for service in PROGRAMS:
        (stack.directory / f".env.{service}").write_text("WORKLOAD=io\n")
    try:
        stack.up()
        stack.boot = {service: stack.log(service) for service in stack.services}
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="module")
def limited(engine: None) -> Iterator[Containers]:
    """A stack whose limits a test chooses before it calls `up`."""
    stack = Containers()
    try:
        yield stack
    finally:
        stack.down()
