"""Behind the edge: what replicas are sent, which of them, and how often."""

import json
import re
import socket
import threading
import time
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
# A replica that is always ready. It reads a request whole, prints it, and hangs up, or says what arrived,
# or only the beginning of that.
REPLICA = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        if not self.path.startswith("/readyz"):
            print(self.command, self.path, flush=True)
            if sys.argv[1] == "hangs up":
                return
        self.send_response(200)
        if sys.argv[1] == "breaks off":
            self.send_header("content-length", "100000")
        self.end_headers()
        self.wfile.write(json.dumps([*self.headers.items()]).encode())
    do_POST = do_PUT = do_GET
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def fleet(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """A second clone: three replicas of a service, nothing else, a domain of its own, a proxy in front.

    Its containers have variables of a proxy for other addresses, as a Docker client may set them.
    """
    variables = dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    )
    override = tmp_path_factory.mktemp("fleet") / "proxy.yml"
    services = {name: {"environment": variables} for name in ("edge", SERVICE)}
    override.write_text(json.dumps({"services": services}))
    private = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"
    stack = Containers(override, DOMAIN="shop.internal", EDGE_TRUSTED_PROXIES=private)
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
    forged |= {"X-Request-ID": "x" * 10_000, "X-Request-Start": "1"}
    name = replica(containers, 4)
    containers.neighbour(name, "python", "-c", REPLICA, "answers")
    try:
        answer = poll(lambda: next(filter(mirrored, (ask(containers, forged) for _ in range(50))), None))
    finally:
        run("docker", "rm", "--force", name)
    seen = {name.lower(): value for name, value in answer.json()}
    own = {name: value for name, value in seen.items() if name.startswith(("x-", "forwarded")) or "_" in name}
    assert own.keys() == {"x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-request-start"}
    assert own["x-forwarded-proto"] == "http"
    assert re.fullmatch(r"[\d.]+", own["x-forwarded-for"])
    assert re.fullmatch(r"[0-9a-f-]{36}", own["x-request-id"])
    assert re.fullmatch(r"\d{13}", own["x-request-start"])


def ask(stack: Containers, headers: dict[str, str]) -> httpx2.Response:
    """The service's page."""
    return httpx2.get(stack.urls[SERVICE], headers=headers, trust_env=False)


def mirrored(answer: httpx2.Response) -> bool:
    """Whether our own replica answered, with a list of what it got."""
    return answer.text.startswith("[")


def test_a_proxy_in_front_is_believed(fleet: Containers) -> None:
    """Through several trusted hops the right-most stranger is the client; a well-formed id is kept."""
    hops = {"x-forwarded-for": "6.6.6.6, 203.0.113.7, 10.1.2.3", "x-forwarded-proto": "https"}
    for identity, expected in {"proxy-4711.a_b": "proxy-4711.a_b", "two words": "[0-9a-f-]{36}"}.items():
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


def test_a_trusted_load_balancer_has_terminated_tls(fleet: Containers) -> None:
    """Its requests to the plain port are served, other ones are redirected."""
    url = f"http://127.0.0.1:{fleet.ports['EDGE_HTTP_PORT']}"
    headers = {"host": f"{SERVICE}.shop.internal"}
    answer = httpx2.get(url, headers=headers | {"x-forwarded-proto": "https"})
    assert (answer.status_code, answer.json()["scheme"]) == (200, "https")
    assert httpx2.get(url, headers=headers).status_code == 308


def test_nobody_else_is_trusted(containers: Containers) -> None:
    """Without EDGE_TRUSTED_PROXIES, a client's own X-Forwarded-Proto changes nothing."""
    url = f"http://127.0.0.1:{containers.ports['EDGE_HTTP_PORT']}"
    headers = {"host": f"{SERVICE}.localhost", "x-forwarded-proto": "https"}
    assert httpx2.get(url, headers=headers).status_code == 308


@pytest.mark.slow
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


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_a_received_request_is_not_sent_to_another_replica(fleet: Containers, method: str) -> None:
    """A replica reads the request and hangs up: 502, and no other replica sees it."""
    name = replica(fleet, 4)
    fleet.neighbour(name, "python", "-c", REPLICA, "hangs up")
    statuses: dict[str, int] = {}

    def received() -> list[str]:
        return re.findall(rf"^{method} (\S+)", run("docker", "logs", name), re.MULTILINE)

    def ask_one() -> bool:
        path = f"/?{method}{len(statuses)}"
        answer = client.request(method, fleet.urls[SERVICE] + path, content="x" * 1000)
        statuses[path] = answer.status_code
        return len(received()) > 2

    try:
        with httpx2.Client(trust_env=False) as client:
            poll(ask_one, 60)
        lost = [path for path, status in statuses.items() if status == 502]
        assert sorted(lost) == sorted(received())
        served = fleet.log(SERVICE)
        assert [path for path in lost if f'"{method} {path}"' in served] == []
    finally:
        run("docker", "rm", "--force", name)


def test_a_response_that_breaks_off_leaves_no_secret_in_the_log(containers: Containers) -> None:
    """The edge's only line about it has its id and the duration 0, no header and no value of the query."""
    name = replica(containers, 4)
    query, headers = {"token": "of-the-query"}, {"x-api-key": "of-the-headers"}

    def is_cut_off() -> bool:
        try:
            httpx2.get(containers.urls[SERVICE] + "/cut", params=query, headers=headers, trust_env=False)
        except httpx2.RemoteProtocolError:
            return True
        return False

    def lines(words: str) -> list[str]:
        return [line for line in containers.log("edge").splitlines() if '"/cut"' in line and words in line]

    containers.neighbour(name, "python", "-c", REPLICA, "breaks off")
    try:
        poll(is_cut_off, 60)
        cut_off = poll(lambda: lines('"status":200'))
        assert [line for line in cut_off if not re.search('"duration":0,.*"request_id":"', line)] == []
        assert "of-the-" not in containers.log("edge")
    finally:
        run("docker", "rm", "--force", name)


def test_a_body_that_ends_early_reaches_no_replica(containers: Containers) -> None:
    """Up to the size that the edge buffers, a replica sees complete bodies only."""
    name = f"{containers.project}-{SERVICE}-4"
    host, _, port = containers.urls[SERVICE].removeprefix("http://").partition(":")
    head = f"HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"

    def ask_all() -> bool:
        for end in (False, True):
            with socket.create_connection((host, int(port))) as client:
                client.sendall(f"PUT /cut {head}Content-Length: 9\r\n\r\nhalf".encode())
                if end:
                    client.shutdown(socket.SHUT_WR)
                    client.recv(65536)
        request = f"PUT /whole {head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n"
        raw(containers.urls[SERVICE], request.encode())
        return received().count("/whole") > 2

    def received() -> list[str]:
        return re.findall(r"^PUT (\S+)", run("docker", "logs", name), re.MULTILINE)

    containers.neighbour(name, "python", "-c", REPLICA, "answers")
    try:
        poll(ask_all, 60)
        assert set(received()) == {"/whole"}
    finally:
        run("docker", "rm", "--force", name)


def test_replicas_share_the_load_and_one_can_go(fleet: Containers) -> None:
    """All three serve; `docker stop` of one loses no request, and none waits longer than a second."""
    outcomes: Counter[str] = Counter()
    waits: list[float] = []
    done = threading.Event()

    def load(method: str, path: str) -> None:
        with httpx2.Client(trust_env=False) as client:
            while not done.is_set():
                start = time.monotonic()
                try:
                    answer = client.request(method, fleet.urls[SERVICE] + path, json="x")
                    outcomes[str(answer.status_code)] += 1
                except httpx2.HTTPError as error:
                    outcomes[repr(error)] += 1
                waits.append(time.monotonic() - start)

    def served(number: int) -> int:
        return run("docker", "logs", replica(fleet, number)).count('" 200 ')

    def more(*numbers: int) -> None:
        """Wait until each of these replicas has served twenty requests more."""
        goals = {number: served(number) + 20 for number in numbers}
        poll(lambda: all(served(number) > goal for number, goal in goals.items()), 60, lambda: f"{outcomes}")

    clients = [threading.Thread(target=load, args=pair) for pair in [("GET", "/"), ("POST", "/echo")] * 2]
    for client in clients:
        client.start()
    try:
        more(1, 2, 3)
        usual = max(waits)
        run("docker", "stop", "--timeout", "60", replica(fleet, 2))
        more(1, 3)
    finally:
        done.set()
        for client in clients:
            client.join()
    assert outcomes.keys() == {"200"}, outcomes
    assert max(waits) < max(1, 2 * usual), "on a busy machine, requests wait without a stop, too"


def test_the_edge_has_one_privilege_and_stops_cleanly(fleet: Containers) -> None:
    """Not root, and with the capability to bind low ports alone; its authority outlives it."""
    status = dict(
        re.findall(r"(\w+):\s+(\S+)", fleet.exec("edge", "sh", "-c", "cat /proc/$(pidof caddy)/status"))
    )
    assert (status["Uid"], status["Gid"], status["NoNewPrivs"]) == ("10001", "10001", "1")
    # CAP_NET_BIND_SERVICE is bit 10. An init process in front of the edge does not pass it on.
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) in (0, 1 << 10), name
    with Browser(fleet) as before:
        assert fleet.stop("edge") == 0, fleet.log("edge")
        fleet.start("edge")
        assert before.ask(SERVICE).status_code == 200, "the same authority"
