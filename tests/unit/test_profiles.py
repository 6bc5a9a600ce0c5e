"""COMPOSE_PROFILES names profiles that exist, and starts what the services' addresses name."""

import pytest

from checks import profiles

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
        ("postgres://user:p%40ss@db:5432/name", "db", True),
        ("postgres://db/name", "db", True),
        ("postgres://db", "db", True),
        ("postgres://first,db:5433/name", "db", True),
        ("postgres://dbx/name", "db", False),
        ("postgres://user:db@other/name", "db", False),
        ("postgres://other/db", "db", False),
        ("db", "db", False),
    ],
)
def test_an_address_names_its_host(value: str, host: str, named: bool) -> None:
    """And not what is in a password or a path."""
    assert profiles.names_host(value, host) == named


@pytest.mark.parametrize("variable", ["DATABASE_URL", "DATABASE_URL_FILE"])
def test_a_second_database_beside_postgres_is_named(variable: str) -> None:
    """The profile brings one; a URL names another."""
    django = {"environment": {"COMPOSE_PROFILES": "metrics,postgres", variable: "postgres://other/name"}}
    services = {
        "django": django,
        "postgres": {"profiles": ["postgres"]},
        "prometheus": {"profiles": ["metrics"]},
    }
    (line,) = profiles.problems(services, "metrics,postgres")
    assert line.endswith(f"must be without postgres while django has {variable}; change one of them")
    assert list(profiles.problems(services | {"django": {"environment": {variable: "x"}}}, "")) == []
