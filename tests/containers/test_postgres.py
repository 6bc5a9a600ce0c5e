"""COMPOSE_PROFILES=postgres: a PostgreSQL server for Django, as closed as every other container."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest

from checks.doctor import findings
from checks.project import Project
from tests.support.commands import ROOT, answers, poll, run
from tests.support.containers import Containers, up_until_teardown

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def switched(engine: None) -> Iterator[Containers]:
    """Django, first created with SQLite and then switched; with no connection more than it needs."""
    stack = Containers(COMPOSE_PROFILES="postgres", POSTGRES_MAX_CONNECTIONS="38")
    stack.environ["COMPOSE_PROFILES"] = ""
    stack.compose("build", "edge", "django")
    stack.compose("create", "--no-build", "django")
    stack.environ["COMPOSE_PROFILES"] = "postgres"
    yield from up_until_teardown(stack, "django")


def ask(stack: Containers, query: str) -> str:
    """What PostgreSQL answers to its superuser, who can connect inside the container alone."""
    command = ("psql", "--username=postgres", "--dbname=django", "--tuples-only", "--no-align")
    return stack.exec("postgres", *command, f"--command={query}").strip()


def test_django_uses_it_as_a_role_without_privileges(switched: Containers) -> None:
    """Nothing is in SQLite; the password is in no environment; the role has its database alone."""
    assert int(ask(switched, "SELECT count(*) FROM django_migrations")) > 10
    assert "db.sqlite3" not in switched.exec("django", "ls", "/data")
    roles = "SELECT rolname, rolsuper, rolcreaterole FROM pg_roles WHERE rolname = 'django'"
    assert ask(switched, roles) == "django|f|f"
    password = switched.exec("django", "cat", "/run/postgres-password/password")
    assert len(password) == 48
    for service in ("django", "postgres", "postgres-password"):
        assert password not in switched.inspect(service, "{{json .Config}}"), service
    # With the right password, and only with that, also for the superuser.
    connect = "import psycopg, sys; psycopg.connect(sys.argv[1]).close()"
    for user, secret, expected in (("django", password, 0), ("django", "x", 1), ("postgres", password, 1)):
        url = f"postgres://{user}:{secret}@postgres/django"
        switched.exec("django", "python", "-c", connect, url, expect=expected)


def test_it_has_no_privilege_and_no_port(switched: Containers) -> None:
    """A user of its own, no capability, a read-only root file system, limits; only Django reaches it."""
    for service in ("postgres", "postgres-password"):
        host = json.loads(switched.inspect(service, "{{json .HostConfig}}"))
        limits = switched.services[service]["deploy"]["resources"]["limits"]
        assert (host["ReadonlyRootfs"], host["Memory"]) == (True, int(limits["memory"]))
        assert (host["PidsLimit"], host["PortBindings"]) == (limits["pids"], {})
    status = switched.exec("postgres", "cat", "/proc/1/status")
    values = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    assert (values["Uid"], values["NoNewPrivs"]) == (["999"] * 4, ["1"])
    assert {values[f"Cap{kind}"][0] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    switched.exec("postgres", "touch", "/written", expect=1)
    assert [*json.loads(switched.inspect("postgres", "{{json .NetworkSettings.Networks}}"))] == [
        f"{switched.project}_django-data"
    ]


def test_its_connections_are_within_the_budget(switched: Containers) -> None:
    """While one replica more runs, as during a deployment, every thread has a connection; none is left."""
    project = Project(ROOT)
    project.variables["COMPOSE_PROFILES"] = "postgres"
    for database in [it for it in project.containers if it.is_postgres and it.name == "postgres"]:
        database.definition["command"] = ["postgres", "--max_connections=37"]
    (finding,) = findings(project)
    assert (
        "must be at least 38 = django (1 + 1) x 2 x 7 + 10; change it to POSTGRES_MAX_CONNECTIONS=38"
        in finding
    )

    outcomes: Counter[int] = Counter()
    done = threading.Event()

    def client() -> None:
        with httpx2.Client(base_url=switched.urls["django"], trust_env=False, timeout=60) as connection:
            while not done.is_set():
                outcomes[connection.get("/").status_code] += 1

    def used() -> int:
        return int(ask(switched, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'django'"))

    up = ("up", "--detach", "--wait", "--no-build", "--no-deps", "--no-recreate", "--scale")
    switched.compose(*up, "django=2", "django")
    clients = [threading.Thread(target=client) for _ in range(40)]
    try:
        for thread in clients:
            thread.start()
        # Each of the 24 threads gets its connection.
        poll(lambda: used() >= 24, 60, switched.log)
        time.sleep(2)
        assert used() <= 28
    finally:
        done.set()
        for thread in clients:
            thread.join()
        switched.compose(*up, "django=1", "django")
    assert outcomes.keys() == {200}, outcomes


def test_it_stops_cleanly_and_keeps_its_data(switched: Containers) -> None:
    """SIGINT ends it without waiting for Django's connections; `down` and `up` find the same rows."""
    ask(switched, "CREATE TABLE kept AS SELECT 42 AS answer")
    begun = time.monotonic()
    assert switched.stop("postgres") == 0
    assert time.monotonic() - begun < 30
    assert "database system is shut down" in switched.log("postgres")
    run("docker", "start", switched.container("postgres"))
    poll(lambda: answers(switched.urls["django"]), 60, switched.log)
    switched.compose("down")
    switched.up("django")
    assert ask(switched, "SELECT answer FROM kept") == "42"
    assert answers(switched.urls["django"])
