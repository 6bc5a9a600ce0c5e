"""Django reports a damaged database, and recovers when it is repaired."""

import httpx2
import pytest

from tests.support.commands import answers, poll
from tests.support.containers import Clone, Containers, inside, wait_until

pytestmark = pytest.mark.slow


def readiness(stack: Containers, service: str) -> tuple[int, dict]:
    """Status and document of the service's own /readyz; a proxy stops asking one that is not ready."""
    response = httpx2.get(stack.direct(service) + "/readyz", trust_env=False)
    return response.status_code, response.json()


def test_a_damaged_database_makes_django_unready(clone: Clone) -> None:
    """A Django that starts on a damaged database lives, names what failed, and heals by itself."""
    overwrite = (
        "import json, os, sys\n"
        "with open(os.environ['DATA_DIR'] + '/db.sqlite3', 'r+b') as file: file.write(sys.argv[1].encode())\n"
        "print(json.dumps(None))"
    )
    header = "SQLite format 3"
    inside(clone, "django", overwrite, "x" * len(header))
    try:
        clone.compose("restart", "django")
        poll(lambda: answers(clone.direct("django") + "/livez"), log=lambda: clone.log("django"))
        status, document = readiness(clone, "django")
        assert (status, list(document["failed"])) == (503, ["database"]), document
        assert answers(clone.direct("django") + "/livez")
    finally:
        inside(clone, "django", overwrite, header)
    wait_until(clone, "healthy", "django")
    assert readiness(clone, "django")[0] == 200
