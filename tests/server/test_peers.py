"""A client's address, scheme and request id can not be forged; a trusted proxy's word counts."""

import re

import httpx2
import pytest

from tests.support.commands import poll
from tests.support.containers import Containers
from tests.support.processes import JSON, PROGRAMS
from tests.support.servers import Server

# The services whose page says who asks.
APPS = {service: PROGRAMS[service] for service in JSON}
FORGED = {
    "X-Forwarded-For": "198.51.100.66",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=198.51.100.66;proto=https",
    "X-Real-IP": "198.51.100.66",
    "X-Request-ID": "chosen-by-a-stranger",
}


@pytest.mark.parametrize("app", APPS)
def test_a_trusted_proxy_names_the_client(app: str) -> None:
    """The right-most address that is no proxy counts; what the client wrote before it does not."""
    with Server(*APPS[app], WEB_CONCURRENCY="1", FORWARDED_ALLOW_IPS="127.0.0.1,10.0.0.0/8").wait() as server:
        for header, client in {
            "203.0.113.7": "203.0.113.7",
            "6.6.6.6, 203.0.113.7": "203.0.113.7",
            "6.6.6.6, 203.0.113.7, 10.1.2.3": "203.0.113.7",
            "10.1.2.3": "10.1.2.3",
            "2001:db8::1": "2001:db8::1",
            "nonsense": "127.0.0.1",
            "203.0.113.7, <script>": "127.0.0.1",
            "": "127.0.0.1",
        }.items():
            answer = httpx2.get(server.url, headers={"x-forwarded-for": header}).json()
            assert (header, client) == (header, answer["client"])
        for scheme, seen in {"https": "https", "http": "http", "javascript": "http"}.items():
            assert seen == httpx2.get(server.url, headers={"x-forwarded-proto": scheme}).json()["scheme"]


@pytest.mark.parametrize("app", APPS)
def test_a_request_id_is_kept_only_when_a_trusted_proxy_sent_a_well_formed_one(app: str) -> None:
    """Anything else is replaced, so that no log line can be forged through it."""
    with Server(*APPS[app], WEB_CONCURRENCY="1").wait() as server:
        kept = httpx2.get(server.url, headers={"x-request-id": "proxy-4711.a_b"})
        assert kept.headers.get_list("x-request-id") == ["proxy-4711.a_b"]
        poll(lambda: "[proxy-4711.a_b]" in server.log(), log=server.log)
        for identity in (
            "short",
            "x" * 129,
            "x" * 8000,
            "two words",
            'a"b<c>d',
        ):
            replaced = httpx2.get(server.url, headers={"x-request-id": identity})
            assert re.fullmatch("[0-9a-f]{32}", replaced.headers["x-request-id"]), identity
            assert identity not in server.log()


@pytest.mark.parametrize("app", APPS)
def test_a_stranger_gains_nothing_by_forwarded_headers(app: str) -> None:
    """Without trust in the peer every forwarded header is as if it had not been sent."""
    with Server(*APPS[app], WEB_CONCURRENCY="1", FORWARDED_ALLOW_IPS="192.0.2.1").wait() as server:
        answer = httpx2.get(server.url, headers=FORGED)
        assert answer.json()["client"] == "127.0.0.1"
        assert answer.json()["scheme"] == "http"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "stranger" not in server.log()
        assert "198.51.100.66" not in server.log()


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_container_ignores_forwarded_headers_of_clients(containers: Containers, service: str) -> None:
    """Neither through the edge nor from another container of the network."""
    for address in (containers.urls[service], containers.direct(service)):
        answer = httpx2.get(address + "/", headers=FORGED)
        assert answer.status_code == 200
        identity = answer.headers["x-request-id"]
        assert "stranger" not in identity
        poll(lambda word=identity: word in containers.log(service))
    assert "198.51.100.66" not in containers.log(service)
