"""Every service keeps its contract, in containers and as processes, by the same code."""

import re
import time

import httpx2

from checks import smoke
from checks.site import Site
from tests.support.processes import Stack


def test_every_service_answers_its_page_and_its_probes(stack: Stack, http: httpx2.Client) -> None:
    """The page answers 200 with an id of our making; the probes say ok."""
    assert len(stack.urls) >= 1
    for service, url in stack.urls.items():
        page = http.get(url + "/")
        assert page.status_code == 200, stack.log(service)
        assert re.fullmatch(r"[0-9a-f]{32}", page.headers["x-request-id"])
        for path in ("/livez", "/readyz"):
            probe = http.get(url + path)
            assert (probe.status_code, probe.json()) == (200, {"status": "ok", "failed": {}}), service


def test_probes_stay_out_of_the_access_log_and_requests_carry_their_id(
    stack: Stack, http: httpx2.Client
) -> None:
    """A request's log line holds the id that the response names; a probe leaves no line."""
    for service, url in stack.urls.items():
        http.get(url + "/livez")
        identity = http.get(url + "/").headers["x-request-id"]
        deadline = time.monotonic() + 10
        while identity not in (log := stack.log(service)):
            assert time.monotonic() < deadline, log
        assert not re.search(r"(GET|HEAD) /(livez|readyz)", log), service


def test_every_service_keeps_what_any_deployment_owes(stack: Stack) -> None:
    """Nothing of `make smoke` is broken, nothing that a service has is passed over; errors are tiny."""
    for service, url in stack.urls.items():
        report = smoke.examine(Site(url, largest=1000))
        broken = {name: found for name, (result, found) in report.items() if result == "broken"}
        assert broken == {}, service
        kept = {name for name, (result, _) in report.items() if result == "ok"}
        needed = {"forged headers"} if stack.runtime == "docker" else set()
        needed |= {"static files", "security headers"} if service == "django" else set()
        needed |= {"WebSocket"} if service.startswith("fastapi") else set()
        assert needed <= kept, (service, report)
