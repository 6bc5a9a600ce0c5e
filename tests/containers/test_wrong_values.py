"""What a wrong value does in containers: the cause is printed last; a value at its bound starts."""

import re
import sys
from collections.abc import Iterator

import pytest

from tests.support.commands import answers, poll, run
from tests.support.containers import Clone, Containers
from tests.support.processes import PROGRAMS

pytestmark = pytest.mark.slow
SERVICE = list(PROGRAMS)[-1]


@pytest.fixture(scope="module")
def broken(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A project that cannot start: the last service has a wrong variable."""
    stack = Clone(tmp_path_factory.mktemp("broken") / "repository")
    stack.environ |= {"COMPOSE_PROJECT_NAME": stack.project, "PYTHONDONTWRITEBYTECODE": "1"}
    (stack.directory / f".env.{SERVICE}").write_text("LOG_LEVEL=loud\n")
    try:
        yield stack
    finally:
        stack.down()


def test_make_up_prints_the_cause_last(broken: Clone) -> None:
    """Below the log of the container that failed, and of no other."""
    output = run("make", "up", "RUNTIME=docker", cwd=broken.directory, env=broken.environ, expect=2)
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("make")]
    allowed = "one of critical, error, warning, info, debug"
    cause = (
        rf"{SERVICE} (was restarted \d+ times|ended with exit code 1): LOG_LEVEL='loud': must be {allowed}"
    )
    assert re.fullmatch(cause, lines[-1]), output
    logs = re.findall(r"^The log of \S+-([a-z]+)-1:$", output, re.MULTILINE)
    assert logs == [SERVICE], output


def test_the_edge_says_which_value_it_cannot_read(broken: Clone) -> None:
    """A plain `docker compose up` does not check it; the last line has the value and its place."""
    environ = broken.environ | {"EDGE_TRANSFER_TIMEOUT": "abc"}
    command = ("docker", "compose", "up", "--detach", "--wait", "--build", "edge")
    run(*command, cwd=broken.directory, env=environ, expect=1)
    output = run(sys.executable, "-m", "deploy.failures", cwd=broken.directory, env=environ, expect=1)
    *_, last = [line for line in output.splitlines() if line.startswith("edge ")]
    assert re.search(r'timeout duration: time: invalid duration "abc", at \S*Caddyfile:\d+$', last), output


@pytest.mark.parametrize(
    "values",
    [
        {
            "REQUEST_TIMEOUT": "3600",
            "DRAIN_SECONDS": "300",
            "EDGE_TRANSFER_TIMEOUT": "365d",
            "MAX_BODY": "1024GiB",
        },
        {"REQUEST_TIMEOUT": "1", "DRAIN_SECONDS": "0", "EDGE_TRANSFER_TIMEOUT": "1s", "MAX_BODY": "1"},
        {"EDGE_TRUSTED_PROXIES": "10.0.0.1/8 fd00::/8 ::1", "EDGE_NOFILE": "256", "PIDS": "64"},
        {"EDGE_TRUSTED_PROXIES": "private_ranges", "EDGE_HTTP_PORT": "1", "EDGE_HTTPS_PORT": "65535"},
        {"DOMAIN": "Example.COM", "MEMORY": "64m", "TMP_SIZE": "1k", "NOFILE": "1048576"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_the_edge_reads_every_value_at_its_bound(broken: Clone, values: dict[str, str]) -> None:
    """Caddy accepts what checks/variables.py accepts, in a container with these limits."""
    command = ("docker", "compose", "run", "--rm", "--build", "--no-deps", "edge")
    validate = ("caddy", "validate", "--adapter", "caddyfile", "--config", "/etc/caddy/Caddyfile")
    output = run(*command, *validate, cwd=broken.directory, env=broken.environ | values)
    assert "Valid configuration" in output


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_service_starts_with_the_smallest_limits(limited: Containers, name: str) -> None:
    """The lower bounds of checks/variables.py are enough for one worker at rest."""
    limited.environ |= {"CPUS": "0.5", "MEMORY": "64m", "PIDS": "64", "NOFILE": "256", "TMP_SIZE": "1m"}
    limited.up(name)
    assert answers(limited.urls[name])
    assert limited.inspect(name, "{{.State.OOMKilled}}") == "false"


def test_no_cpu_limit_is_a_value(limited: Containers) -> None:
    """CPUS=0, for kernels that cannot limit CPUs: the engine sets none, and the sizing has its cap."""
    limited.environ |= {"CPUS": "0", "MEMORY": "512m", "PIDS": "1024", "NOFILE": "16384"}
    limited.up(SERVICE)
    assert limited.inspect(SERVICE, "{{.HostConfig.NanoCpus}}") == "0"
    assert answers(limited.urls[SERVICE])
    poll(lambda: "at most 12 without a CPU limit" in limited.log(SERVICE), log=limited.log)
