"""COMPOSE_PROFILES with postgres and a DATABASE_URL contradict each other."""

import pytest

from checks import profiles


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
