"""The stack on a Docker Swarm of two nodes: a second engine on this machine, with a network of its own."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.commands import poll, run
from tests.support.postgres_container import published_postgres
from tests.support.second_engine import SecondEngine
from tests.support.swarm import BalancedVisitors, Swarm, Visitors

pytestmark = pytest.mark.alone


class Nodes(Swarm):
    """The stack over this engine and a second one, with an edge on each."""

    def __init__(self, directory: Path, second: SecondEngine) -> None:
        super().__init__(directory)
        self.second = second
        self.edges = (self.url, self.url.replace("127.0.0.1", second.address))

    def join(self) -> None:
        """Make the second engine a worker with the images of the stack."""
        token = run("docker", "swarm", "join-token", "--quiet", "worker").strip()
        self.second.docker("swarm", "join", "--token", token, f"{self.second.here}:2377")
        self.second.load(*self.local_images())
        here = run("docker", "info", "--format", "{{.Swarm.NodeID}}").strip()
        there = self.second.docker("info", "--format", "{{.Swarm.NodeID}}").strip()
        run("docker", "node", "update", "--label-add", "edge=true", there)
        self.nodes = (here, there)

    def tasks(self) -> list[dict[str, int]]:
        """The number of running replicas of each service, by node."""
        options = ("--filter", "desired-state=running", "--format", "{{.Name}} {{.CurrentState}}")
        return [
            Counter(
                line.partition(".")[0].removeprefix(f"{self.name}_")
                for line in run("docker", "node", "ps", *options, node).splitlines()
                if " Running " in line
            )
            for node in self.nodes
        ]

    def state(self) -> str:
        """What runs where, for a failing test."""
        return f"{self.tasks()}\n{self.recent_log(0)}"

    def set_availability(self, value: str) -> None:
        """Drain the second node, or make it active again."""
        run("docker", "node", "update", "--availability", value, self.nodes[1])


@pytest.fixture(scope="module")
def nodes(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Version 1 of every application on two nodes; each test finds what the one before has left."""
    with ExitStack() as stack:
        second = stack.enter_context(SecondEngine())
        swarm = Nodes(tmp_path_factory.mktemp("swarm") / "repository", second)
        stack.callback(second.docker, "swarm", "leave", expect=None)
        stack.callback(swarm.leave)

        # Django's replicas on both nodes share a PostgreSQL.
        database = stack.enter_context(published_postgres(second.here))
        swarm.secrets["django-database-url"] = database

        swarm.create(second.here)
        swarm.join()
        swarm.deploy("1")
        yield swarm


def test_a_drained_node_loses_no_request(nodes: Nodes) -> None:
    """Its edge says that it stops, Swarm's DNS forgets its replicas first, and the other node takes over."""
    assert nodes.tasks() == [dict.fromkeys(nodes.applications, 1) | {"edge": 1}] * 2
    everything = dict.fromkeys(nodes.applications, 2) | {"edge": 1}
    with BalancedVisitors(nodes, *nodes.edges) as visitors:
        poll(lambda: visitors.answered > 50)
        nodes.set_availability("drain")
        poll(lambda: nodes.tasks() == [everything, {}], 90, nodes.state)
        answered = visitors.answered
        poll(lambda: visitors.answered > answered + 50)
    print(visitors.report())
    assert visitors.failures == []


def test_scaling_spreads_the_replicas_again(nodes: Nodes) -> None:
    """A node that is active again gets an edge, and replicas only by the commands of docs/fleet.md."""
    nodes.set_availability("active")
    for number in (4, 2):
        services = [f"{nodes.name}_{application}={number}" for application in nodes.applications]
        run("docker", "service", "scale", "--detach", *services)
        expected = [dict.fromkeys(nodes.applications, number // 2) | {"edge": 1}] * 2
        poll(lambda expected=expected: nodes.tasks() == expected, 90, nodes.state)


def test_a_lost_node_costs_the_requests_on_open_connections(nodes: Nodes) -> None:
    """No more than one for each client of the other edge; Swarm replaces the replicas."""
    with Visitors(nodes) as visitors:
        poll(lambda: visitors.answered > 50)
        nodes.second.connect("down")
        begin = time.monotonic()
        everything = dict.fromkeys(nodes.applications, 2) | {"edge": 1}
        poll(lambda: nodes.tasks()[0] == everything, 90, nodes.state)
        print(f"replaced after {time.monotonic() - begin:.0f} s")
        answered = visitors.answered
        poll(lambda: visitors.answered > answered + 50)
    nodes.second.connect("up")
    print(visitors.report(), visitors.failures)
    assert len(visitors.failures) <= len(visitors.threads)
    assert max(visitors.failed_at, default=begin) < begin + 2
