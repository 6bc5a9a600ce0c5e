"""COMPOSE_PROFILES names profiles that exist, and starts what the services' addresses name."""

import os
import sys

import pytest

from checks import profiles, variables
from tests.support.commands import ROOT, lacking, run

SERVICES = {
    "web": {"environment": {"CACHE": "redis://:secret@cache:6379/0", "MODE": "cache"}},
    "cache": {"profiles": ["cache"]},
    "watch": {"profiles": ["metrics"], "environment": {"TARGET": "http://alerts/"}},
    "alerts": {"profiles": ["alerts"]},
}


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        ("cache", []),
        ("*", []),
        ("cache,metrics,alerts", []),
        ("", ["'': must contain cache, because web's CACHE names cache; change one of them"]),
        ("cache,metrics", ["must contain alerts, because watch's TARGET names alerts"]),
        ("cache,metric", ["metric must be one of alerts, cache, metrics; change it"]),
    ],
)
def test_what_is_wrong_is_named(active: str, expected: list[str]) -> None:
    """One line each, with the file and the value."""
    found = list(profiles.problems(SERVICES, active))
    assert len(found) == len(expected), found
    for line, sentence in zip(found, expected, strict=True):
        assert line.startswith(f".env: COMPOSE_PROFILES={active!r}: "), line
        assert sentence in line


@pytest.mark.parametrize(
    ("value", "host", "named"),
    [
        ("redis://user:p%40ss@db:5432/name", "db", True),
        ("redis://db/name", "db", True),
        ("redis://db", "db", True),
        ("redis://first,db:5433/name", "db", True),
        ("redis://dbx/name", "db", False),
        ("redis://user:db@other/name", "db", False),
        ("redis://other/db", "db", False),
        ("db", "db", False),
    ],
)
def test_an_address_names_its_host(value: str, host: str, named: bool) -> None:
    """And not what is in a password or a path."""
    assert profiles.names_host(value, host) == named


def test_make_up_refuses_a_profile_that_does_not_exist() -> None:
    """Compose itself would ignore it."""
    if not variables.has_compose():
        lacking("no Docker Compose to resolve docker-compose.yml with")
    command = (sys.executable, "-m", "checks.variables")
    said = run(*command, cwd=ROOT, env=os.environ | {"COMPOSE_PROFILES": "nothing"}, expect=1)
    assert said.startswith("environment: COMPOSE_PROFILES='nothing': nothing must be "), said
    assert len(said.splitlines()) == 1
