"""What operators do with plain Compose loses no request: the edge holds what finds no ready replica."""

from collections.abc import Callable, Iterator

import pytest

from tests.support.commands import run
from tests.support.deployment import Deployment, Load

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def deployment(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Every service with one replica."""
    stack = Deployment(tmp_path_factory.mktemp("holding") / "repository")
    try:
        stack.compose("up", "--build", "--detach", "--wait")
        yield stack
    finally:
        stack.down()


def up_with_new_code(stack: Deployment) -> None:
    """`docker compose up` after an edit that is in every application's image."""
    module = stack.directory / "serving/__init__.py"
    module.write_text(module.read_text() + "\n# edited\n")
    stack.compose("up", "--build", "--detach", "--wait")


def restart(stack: Deployment) -> None:
    """`docker restart` of every application's container."""
    run("docker", "restart", *(stack.container(service) for service in stack.urls))


def scale_up_and_down(stack: Deployment) -> None:
    """Two replicas of each application, then one again."""
    for count in (2, 1):
        scale = [word for service in stack.urls for word in ("--scale", f"{service}={count}")]
        stack.compose("up", "--detach", "--wait", "--no-build", "--no-recreate", *scale)


@pytest.mark.parametrize("operation", [up_with_new_code, restart, scale_up_and_down])
def test_replacing_the_only_replica_loses_nothing(
    deployment: Deployment, operation: Callable[[Deployment], None]
) -> None:
    """GET and POST, slow requests and event streams: each is answered, and no request is repeated."""
    edge = deployment.inspect("edge", "{{.State.StartedAt}}")
    with Load(deployment) as load:
        # Slow requests and streams are in flight.
        load.done.wait(3)
        operation(deployment)
        load.done.wait(3)
    print(load.report())
    assert load.failures == []
    assert deployment.inspect("edge", "{{.State.StartedAt}}") == edge
    received = deployment.received()
    assert {request: received[request] for request in load.sent if received[request] != 1} == {}
    assert load.codes.keys() <= {1001, 1012}
