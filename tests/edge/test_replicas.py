"""Behind the edge: what replicas are sent, which of them, and how often."""

import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.browser import Browser, raw
from tests.support.commands import poll, run
from tests.support.containers import Containers
from tests.support.processes import JSON

# A service that keeps no data, and speaks JSON.
SERVICE = next(iter(JSON), "")
pytestmark = pytest.mark.skipif(not SERVICE, reason="no service that keeps no data")
# A replica that is always ready. It reads a request whole, prints it, and hangs up, or says what arrived.
REPLICA = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        if self.path != "/readyz":
            print(self.command, self.path, flush=True)
            if sys.argv[1] == "hangs up":
                return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps([*self.headers.items()]).encode())
    do_POST = do_PUT = do_GET
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def fleet(engine: None) -> Iterator[Containers]:
    """A second clone: three replicas of a service, nothing else, a domain of its own, a proxy in front."""
    private = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"
    stack = Containers(DOMAIN="shop.internal", EDGE_TRUSTED_PROXIES=private)
    try:
        stack.compose("up", "--build", "--detach", "--wait", "--scale", f"{SERVICE}=3", "edge", SERVICE)
        yield stack
    finally:
        stack.down()


def replica(stack: Containers, number: int) -> str:
    """The name of one of the service's containers."""
    return f"{stack.project}-{SERVICE}-{number}"


def test_forged_headers_end_at_the_edge(containers: Containers) -> None:
    """A replica sees the edge's own values, and no header that could pass for another one's."""
    forged = {f"X-Forwarded-{word}": "evil" for word in ("For", "Proto", "Host", "Port", "Prefix", "Server")}
    forged |= {"Forwarded": "for=6.6.6.6", "X-Real-IP": "6.6.6.6", "X_Forwarded_For": "6.6.6.6", "A_B": "c"}
    forged |= {"X-Request-ID": "x" * 10_000}
    name = replica(containers, 4)
    containers.neighbour(name, "python", "-c", REPLICA, "answers")
    try:
        answer = poll(lambda: next(filter(mirrored, (ask(containers, forged) for _ in range(50))), None))
    finally:
        run("docker", "rm", "--force", name)
    seen = {name.lower(): value for name, value in answer.json()}
    own = {name: value for name, value in seen.items() if name.startswith(("x-", "forwarded")) or "_" in name}
    assert own.keys() == {"x-forwarded-for", "x-forwarded-proto", "x-request-id"}
    assert own["x-forwarded-proto"] == "http"
    assert re.fullmatch(r"[\d.]+", own["x-forwarded-for"])
    assert re.fullmatch(r"[0-9a-f]{32}", own["x-request-id"])


def ask(stack: Containers, headers: dict[str, str]) -> httpx2.Response:
    """The service's page."""
    return httpx2.get(stack.urls[SERVICE], headers=headers, trust_env=False)


def mirrored(answer: httpx2.Response) -> bool:
    """Whether our own replica answered, with a list of what it got."""
    return answer.text.startswith("[")


def test_a_proxy_in_front_is_believed(fleet: Containers) -> None:
    """Through several trusted hops the right-most stranger is the client; a well-formed id is kept."""
    hops = {"x-forwarded-for": "6.6.6.6, 203.0.113.7, 10.1.2.3", "x-forwarded-proto": "https"}
    for identity, expected in {"proxy-4711.a_b": "proxy-4711.a_b", "two words": "[0-9a-f]{32}"}.items():
        headers = hops | {"x-request-id": identity}
        answer = httpx2.get(fleet.urls[SERVICE], headers=headers)
        assert (answer.json()["client"], answer.json()["scheme"]) == ("203.0.113.7", "https")
        assert re.fullmatch(expected, answer.headers["x-request-id"])


def test_another_domain_takes_one_variable(fleet: Containers) -> None:
    """DOMAIN alone gives it certificates and HSTS, and the services answer to its names."""
    with Browser(fleet) as browser:
        answer = browser.ask(SERVICE)
        assert (answer.status_code, answer.json()["scheme"]) == (200, "https")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_a_missing_service_is_answered_for(fleet: Containers) -> None:
    """503 as a problem document within seconds, and no line in the log for each missing replica."""
    other = next(service for service in fleet.urls if service != SERVICE)
    answer = httpx2.get(fleet.urls[other])
    assert (answer.status_code, answer.json()["status"]) == (503, 503)
    assert "health_checker" not in fleet.log("edge")


def test_two_projects_on_one_host_are_apart(fleet: Containers) -> None:
    """Each edge sends requests to the replicas of its own Compose project only."""
    second = Containers()
    try:
        second.up(SERVICE)
        for stack, other in ((second, fleet), (fleet, second)):
            identity = httpx2.get(stack.urls[SERVICE]).headers["x-request-id"]
            poll(lambda name=identity, own=stack: name in own.log(SERVICE))
            assert identity not in other.log()
    finally:
        second.down()


def test_a_request_that_may_have_been_received_is_not_sent_twice(fleet: Containers) -> None:
    """A GET or PUT is asked again elsewhere when a replica hangs up, a POST never."""
    name = replica(fleet, 4)
    fleet.neighbour(name, "python", "-c", REPLICA, "hangs up")
    statuses: dict[str, int] = {}

    def received() -> list[str]:
        return run("docker", "logs", name).splitlines()

    def ask_all() -> bool:
        for method in ("GET", "PUT", "POST"):
            path = f"/?{len(statuses)}"
            answer = client.request(method, fleet.urls[SERVICE] + path, content="x" * 1000)
            statuses[f"{method} {path}"] = answer.status_code
        return {"GET", "PUT", "POST"} <= {line.split()[0] for line in received()}

    try:
        with httpx2.Client(trust_env=False) as client:
            poll(ask_all, 60)
        lost = [request for request, status in statuses.items() if status == 502]
        assert lost == [line for line in received() if line.startswith("POST")]
        assert set(statuses.values()) == {200, 405, 502}
        served = fleet.log(SERVICE)
        assert [request for request in lost if f'"{request}"' in served] == []
    finally:
        run("docker", "rm", "--force", name)


def test_half_a_body_reaches_nobody(containers: Containers) -> None:
    """400 for malformed chunks and for a body that ends early; nobody hears of a client that left."""
    name = f"{containers.project}-{SERVICE}-4"
    host, _, port = containers.urls[SERVICE].removeprefix("http://").partition(":")
    head = f"HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
    statuses = {"/cut": set(), "/malformed": set(), "/whole": set()}

    def ask_all() -> bool:
        for path in ("/left", "/cut"):
            with socket.create_connection((host, int(port))) as client:
                client.sendall(f"PUT {path} {head}Content-Length: 9\r\n\r\nhalf".encode())
                if path in statuses:
                    client.shutdown(socket.SHUT_WR)
                    statuses[path].add(client.recv(65536).split()[1])
        for path, end in (("/malformed", "zz\r\n"), ("/whole", "0\r\n\r\n")):
            request = f"PUT {path} {head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n{end}"
            statuses[path].add(raw(containers.urls[SERVICE], request.encode()).split()[1])
        return received().count("/whole") > 2

    def received() -> list[str]:
        return re.findall(r"^PUT (\S+)", run("docker", "logs", name), re.MULTILINE)

    containers.neighbour(name, "python", "-c", REPLICA, "answers")
    try:
        poll(ask_all, 60)
        assert statuses["/cut"] == statuses["/malformed"] == {b"400"}
        assert set(received()) == {"/whole"}
    finally:
        run("docker", "rm", "--force", name)


def test_replicas_share_the_load_and_one_can_go(fleet: Containers) -> None:
    """All three serve; a draining one gets nothing more, and stopping it then costs no request."""
    outcomes: Counter[str] = Counter()
    done = threading.Event()

    def load(method: str, path: str) -> None:
        with httpx2.Client(trust_env=False) as client:
            while not done.is_set():
                try:
                    answer = client.request(method, fleet.urls[SERVICE] + path, json="x")
                    outcomes[str(answer.status_code)] += 1
                except httpx2.HTTPError as error:
                    outcomes[repr(error)] += 1

    def served(number: int) -> int:
        return run("docker", "logs", replica(fleet, number)).count('" 200 ')

    def more(*numbers: int) -> None:
        """Wait until each of these replicas has served twenty requests more."""
        goals = {number: served(number) + 20 for number in numbers}
        poll(lambda: all(served(number) > goal for number, goal in goals.items()), 60, lambda: f"{outcomes}")

    def silent() -> bool:
        before = served(2)
        more(1, 3)
        return served(2) == before

    clients = [threading.Thread(target=load, args=pair) for pair in [("GET", "/"), ("POST", "/echo")] * 2]
    for client in clients:
        client.start()
    try:
        more(1, 2, 3)
        drain = "from serving import health; health.drain_file().touch()"
        run("docker", "exec", replica(fleet, 2), "python", "-c", drain)
        poll(silent)
        run("docker", "stop", replica(fleet, 2))
        more(1, 3)
    finally:
        done.set()
        for client in clients:
            client.join()
    assert outcomes.keys() == {"200"}, outcomes


def test_the_edge_has_one_privilege_and_stops_cleanly(fleet: Containers) -> None:
    """Not root, and with the capability to bind low ports alone; its authority outlives it."""
    status = dict(re.findall(r"(\w+):\s+(\S+)", fleet.exec("edge", "cat", "/proc/1/status")))
    expected = {"Uid": "10001", "Gid": "10001", "NoNewPrivs": "1"}
    # CAP_NET_BIND_SERVICE is bit 10.
    expected |= dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), f"{1 << 10:016x}")
    assert expected == {name: status[name] for name in expected}
    with Browser(fleet) as before:
        assert fleet.stop("edge") == 0, fleet.log("edge")
        fleet.start("edge")
        assert before.ask(SERVICE).status_code == 200, "the same authority"
