"""Variables of the edge: the names of a service, the address of the machine, no access log."""

import json
import secrets
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import httpx2
import pytest

from tests.support.browser import Browser
from tests.support.commands import poll, run
from tests.support.containers import Containers, python_image, up_until_teardown
from tests.support.processes import PROGRAMS

pytestmark = pytest.mark.slow
SERVICE = next(iter(PROGRAMS))
# A bare domain and one below it. Caddy makes certificates of its own for names in .internal.
NAMES = ("shop.internal", "www.shop.internal")
# Sends one request, and prints the address that it comes from.
CLIENT = """
import http.client, sys
address, port, host = sys.argv[1:]
connection = http.client.HTTPConnection(address, int(port))
connection.connect()
print(connection.sock.getsockname()[0])
connection.request("GET", "/ipv6", headers={"Host": host})
connection.getresponse()
"""


@pytest.fixture(scope="module")
def shop(engine: None) -> Iterator[Containers]:
    """One service with these names; the edge on every address of this machine, without an access log."""
    names = {f"{SERVICE.upper()}_HOST": " ".join(NAMES)}
    yield from up_until_teardown(Containers(EDGE_ADDRESS="", EDGE_ACCESS_LOG="off", **names), SERVICE)


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_domain_and_www_are_served(shop: Containers, name: str) -> None:
    """Each with its certificate and HSTS; the name that they replace is unknown."""
    with Browser(shop) as browser:
        url, extensions = f"https://127.0.0.1:{browser.port}/", {"sni_hostname": name}
        answer = browser.get(url, headers={"host": name}, extensions=extensions)
        assert (answer.status_code, answer.headers.get("location")) == (200, None)
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        replaced = {"host": f"{SERVICE}.localhost"}
        assert browser.get(url, headers=replaced, extensions=extensions).status_code == 421


@pytest.mark.parametrize("name", NAMES)
def test_plain_http_leads_to_the_same_name(shop: Containers, name: str) -> None:
    """Not from one name to the other."""
    url = f"http://127.0.0.1:{shop.ports['EDGE_HTTP_PORT']}/a?b=c"
    answer = httpx2.get(url, headers={"host": name}, trust_env=False)
    assert answer.status_code == 308
    assert answer.headers["location"] == f"https://{name}:{shop.ports['EDGE_HTTPS_PORT']}/a?b=c"


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_an_empty_address_is_every_address(shop: Containers, address: str) -> None:
    """Of IPv4 and of IPv6."""
    url = f"http://{address}:{shop.ports['EDGE_HTTP_PORT']}/livez"
    assert httpx2.get(url, trust_env=False).status_code == 200


def test_the_client_s_ipv6_address_reaches_the_application(shop: Containers) -> None:
    """In a network with IPv6, the edge listens on it, and no application needs an address of that kind."""
    network = f"{shop.project}-ipv6"
    subnet = f"fd00:{secrets.token_hex(2)}:{secrets.token_hex(2)}::/64"
    run("docker", "network", "create", "--ipv6", "--subnet", subnet, network)
    edge = shop.container("edge")
    try:
        run("docker", "network", "connect", network, edge)
        networks = json.loads(shop.inspect("edge", "{{json .NetworkSettings.Networks}}"))
        published = shop.ports[f"{SERVICE.upper()}_PORT"]
        (port,) = [it["target"] for it in shop.services["edge"]["ports"] if it["published"] == published]
        client = ("docker", "run", "--rm", "--network", network, python_image(), "python", "-c", CLIENT)
        address = networks[network]["GlobalIPv6Address"]
        client_address = run(*client, address, str(port), NAMES[0]).strip()
        assert ip_address(client_address) in ip_network(subnet)
        line = f'{client_address} "GET /ipv6" 404'
        poll(lambda: line in shop.log(SERVICE), log=lambda: shop.log(SERVICE))
    finally:
        run("docker", "network", "disconnect", network, edge, expect=None)
        run("docker", "network", "rm", network)


def test_an_edge_without_an_access_log_is_silent(shop: Containers) -> None:
    """The application's line of the same request has come when the edge's log is read."""
    url = f"https://127.0.0.1:{shop.ports['EDGE_HTTPS_PORT']}/quiet"
    with Browser(shop) as browser:
        browser.get(url, headers={"host": NAMES[0]}, extensions={"sni_hostname": NAMES[0]})
    poll(lambda: "/quiet" in shop.log(SERVICE), log=lambda: shop.log(SERVICE))
    log = shop.log("edge")
    assert "serving initial configuration" in log
    assert "handled request" not in log
