"""Every service does what `make smoke` checks, in containers and as local processes."""

import re

import httpx2
import pytest

from checks import smoke
from checks.site import Site
from tests.support.commands import poll
from tests.support.processes import PROGRAMS, Stack


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_service_answers_its_page_and_its_probes(stack: Stack, service: str, http: httpx2.Client) -> None:
    """The page answers 200 with a request id; the probes say ok."""
    page = http.get(stack.urls[service] + "/")
    assert page.status_code == 200, stack.log(service)
    assert re.fullmatch(r"[0-9a-f-]{32,36}", page.headers["x-request-id"])
    for path in ("/livez", "/readyz"):
        probe = http.get(stack.direct(service) + path)
        assert (probe.status_code, probe.json()) == (200, {"status": "ok", "failed": {}})


@pytest.mark.parametrize("service", PROGRAMS)
def test_the_log_has_each_request_with_its_id_but_no_probe(
    stack: Stack, service: str, http: httpx2.Client
) -> None:
    """A request's log line holds the id that the response names; a probe leaves no line."""
    http.get(stack.urls[service] + "/livez")
    identity = http.get(stack.urls[service] + "/").headers["x-request-id"]
    poll(lambda: identity in stack.log(service), 10)
    assert not re.search(r"(GET|HEAD) /(livez|readyz)", stack.log(service))


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_service_passes_the_checks_of_any_deployment(stack: Stack, service: str) -> None:
    """No check of `make smoke` fails, and none is left out that applies to the service; errors are short."""
    report = smoke.examine(Site(stack.urls[service], largest=1000))
    assert {name: found for name, (result, found) in report.items() if result == "broken"} == {}
    needed = {"forged headers"} if stack.runtime == "docker" else set()
    needed |= {"static files", "security headers"} if service == "django" else set()
    needed |= {"WebSocket"} if service == "fastapi" else set()
    assert needed <= {name for name, (result, _) in report.items() if result == "ok"}, report
