"""Slow and hostile clients are closed, cost the others nothing, and get no further than the edge."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from tests.conftest import ROOT, Containers, lacking, poll

CONNECTIONS = 200


@pytest.fixture(scope="module")
def impatient(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Every service, behind an edge whose deadlines of two minutes are ten seconds."""
    directory = tmp_path_factory.mktemp("impatient")
    text = (ROOT / "deploy/edge/Caddyfile").read_text()
    assert text.count(" 2m\n") == 2
    (directory / "Caddyfile").write_text(text.replace(" 2m\n", " 10s\n"))
    (directory / "Caddyfile").chmod(0o644)
    override = directory / "override.yml"
    override.write_text(f"services: {{edge: {{volumes: ['{directory}/Caddyfile:/etc/caddy/Caddyfile:ro']}}}}")
    stack = Containers(override)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def p99(client: httpx2.Client, stack: Containers, rounds: int = 100) -> dict[str, float]:
    """The 99th percentile of each service's answers, asked in turn; all of them 200."""
    times: dict[str, list[float]] = {service: [] for service in stack.urls}
    for _ in range(rounds):
        for service, url in stack.urls.items():
            start = time.monotonic()
            assert client.get(url).status_code == 200, service
            times[service].append(time.monotonic() - start)
    return {service: sorted(found)[rounds * 99 // 100 - 1] for service, found in times.items()}


def connected(stack: Containers) -> int:
    """How many clients the edge has a connection with on the services' plain listeners."""
    table = stack.exec("edge", "cat", "/proc/net/tcp", "/proc/net/tcp6")
    lines = [line.split()[1:4] for line in table.splitlines() if ":" in line.split()[0]]
    listeners = {f"{port:04X}" for port in range(8001, 8005)}
    return sum(local.split(":")[1] in listeners and state == "01" for local, _, state in lines)


@pytest.mark.parametrize(("kind", "seconds"), [("-H", 8), ("-B", 18), ("-X", 13)])
def test_slow_clients_are_closed_and_hold_nobody_up(impatient: Containers, kind: str, seconds: int) -> None:
    """While 200 clients per service dawdle over header, body or answer, others are served as if alone."""
    try:
        subprocess.run(["slowhttptest", "-h"], capture_output=True, check=False)
    except FileNotFoundError:
        lacking("no slowhttptest")
    counts = ("-c", f"{CONNECTIONS}", "-r", f"{CONNECTIONS}", "-l", f"{seconds + 10}", "-i", "2")
    narrow = ("-w", "10", "-y", "20", "-n", "1", "-z", "5") if kind == "-X" else ()
    with httpx2.Client(trust_env=False, timeout=10) as client, ExitStack() as attackers:
        quiet = p99(client, impatient)
        idle = connected(impatient)
        for url in impatient.urls.values():
            command = ["slowhttptest", kind, *counts, *narrow, "-u", url + "/"]
            attacker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            attackers.callback(attacker.communicate)
            attackers.callback(attacker.kill)
        poll(lambda: connected(impatient) > idle + CONNECTIONS * len(impatient.urls) * 0.9)
        p99(client, impatient, 1)  # what the slow readers asked for has been answered by then
        loaded = p99(client, impatient)
        poll(lambda: connected(impatient) <= idle + 1, seconds + 10)
    # A service that is held up answers after seconds; of a few milliseconds any neighbour makes three times.
    assert {name: time for name, time in loaded.items() if time > max(3 * quiet[name], 0.5)} == {}
