"""The profile `metrics`: real figures of real requests in Prometheus, and alerts that arrive.

Grafana is not started: what it would ask is asked here, each selector of each query.
"""

import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from tests.support.commands import ROOT, poll, run
from tests.support.containers import Clone, inside
from tests.support.processes import PROGRAMS

pytestmark = pytest.mark.slow

DASHBOARD = json.loads((ROOT / "deploy/metrics/dashboard.json").read_text())
ALERTS = (ROOT / "deploy/metrics/alerts.yml").read_text()
PROMETHEUS = "http://prometheus.monitoring:9090/api/v1"
# Routes that fail, and that hold a thread or an event loop: a file, and what is added to it.
SECONDS = 3
ROUTES = {}
ROUTES["django"] = (
    "wsgi_app/django_site/urls.py",
    "import time; from django.http import HttpResponse",
    "urlpatterns += [path('fail', lambda request: 1 / 0)]",
    f"urlpatterns += [path('wait', lambda request: HttpResponse(time.sleep({SECONDS}) or 'waited'))]",
)
ROUTES["flask"] = (
    "wsgi_app/flask_site/__init__.py",
    "import time",
    "app.add_url_rule('/fail', 'fail', lambda: 1 / 0)",
    f"app.add_url_rule('/wait', 'wait', lambda: time.sleep({SECONDS}) or 'waited')",
)
ROUTES["fastapi"] = (
    "asgi_app/main.py",
    "import time",
    "async def fail(): raise RuntimeError",
    f"async def wait(): time.sleep({SECONDS})",
    "api.add_api_route('/fail', fail); api.add_api_route('/wait', wait)",
)
# Series that only some servers or deployments have; without one of those, nothing exports them.
ELSEWHERE = {"backup_age_seconds", "server_database_connections"}
GUNICORN = {name for name, program in PROGRAMS.items() if program[0] == "serving.gunicorn"}
if not GUNICORN:
    ELSEWHERE |= {"server_threads", "server_threads_busy"}
if PROGRAMS.keys() == GUNICORN:
    ELSEWHERE |= {"server_event_loop_delay_seconds", "server_websockets"}
# The one whose capacity is used up.
BUSY = next(iter(PROGRAMS))
# Prints each request that it gets.
RECEIVER = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()
HTTPServer(("", 8000), Handler).serve_forever()
"""
CONNECT = """
import json, socket, sys
refused = {}
for name in sys.argv[1:]:
    try:
        socket.create_connection((name, 9090), 2).close()
    except OSError as error:
        refused[name] = str(error)
print(json.dumps(refused))
"""


class Monitored(Clone):
    """The stack with the profile, with impatient alerts, and a receiver for them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, COMPOSE_PROFILES="metrics", ALERT_WEBHOOK_URL="http://receiver:8000/hook")
        metrics = directory / "deploy/metrics"
        (metrics / "alerts.yml").write_text(re.sub(r"\bfor: \d+m$", "for: 0s", ALERTS, flags=re.MULTILINE))
        for name, pattern in (
            ("prometheus.yml", r"(?<=_interval: )\d+[sm]"),
            ("alertmanager.yml", r"(?<=group_wait: )10s|(?<=group_interval: )1m"),
        ):
            text = (metrics / name).read_text()
            (metrics / name).write_text(re.sub(pattern, "1s", text))
        for service in PROGRAMS:
            file, *lines = ROUTES[service]
            (directory / file).write_text("\n".join([(directory / file).read_text(), *lines, ""]))
        self.environ |= {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": f"docker-compose.yml:{self.networks}",
        }

    def make(self, *arguments: str, **options: Any) -> str:
        """The output of `make ARGUMENTS`."""
        return run("make", *arguments, "RUNTIME=docker", cwd=self.directory, env=self.environ, **options)

    def receiver(self) -> None:
        """Start the receiver of the alerts."""
        name = f"{self.project}-receiver"
        self.neighbours.append(name)
        place = (f"--network={self.project}_monitoring", "--network-alias=receiver")
        image = self.services["certificates"]["image"]
        run("docker", "run", "--detach", "--name", name, *place, image, "python", "-c", RECEIVER)

    def received(self) -> list[dict[str, Any]]:
        """The alerts that arrived."""
        lines = run("docker", "logs", f"{self.project}-receiver").splitlines()
        return [alert for line in lines if line[:1] == "{" for alert in json.loads(line)["alerts"]]

    def ask(self, path: str, *queries: str) -> list[Any]:
        """What Prometheus answers to each of these queries."""
        urls = [f"{PROMETHEUS}/{path}?query={quote(query, safe='')}" for query in queries]
        script = 'for url in "$@"; do wget -q -O - "$url" || echo "{}"; echo; done'
        lines = self.exec("prometheus", "sh", "-c", script, "-", *urls).splitlines()
        answers = [json.loads(line) for line in lines if line]
        assert len(answers) == len(queries), lines
        return [answer.get("data") for answer in answers]

    def value(self, query: str) -> float:
        """The one value of a query; 0 without any."""
        (data,) = self.ask("query", query)
        return float(data["result"][0]["value"][1]) if data["result"] else 0

    def firing(self, alert: str) -> list[dict[str, str]]:
        """The labels of each alert of this name that fires."""
        (data,) = self.ask("query", f'ALERTS{{alertname="{alert}", alertstate="firing"}}')
        return [found["metric"] for found in data["result"]]


@pytest.fixture(scope="module")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Everything but Grafana, after requests of each kind."""
    clone = Monitored(tmp_path_factory.mktemp("monitored") / "repository")
    try:
        clone.up(*PROGRAMS, "certificates", "alertmanager", "prometheus")
        clone.receiver()
        traffic(clone)
        yield clone
    finally:
        clone.down()


def traffic(stack: Monitored) -> None:
    """Requests that succeed and that fail, and a worker that is killed, in each service."""
    with httpx2.Client(trust_env=False) as client:
        for service in PROGRAMS:
            url = stack.urls[service]
            for path, status in (("/", 200), ("/missing", 404), ("/fail", 500)):
                for _ in range(20):
                    assert client.get(url + path).status_code == status, stack.log(service)
    kill = "import os, signal; from pathlib import Path; "
    kill += "parent = Path('/proc/1/task/1/children').read_text().split()[0]; "
    kill += "children = Path(f'/proc/{parent}/task/{parent}/children').read_text().split(); "
    kill += "os.kill(int(children[-1]), signal.SIGKILL)"
    stack.exec(BUSY, "python", "-c", kill)


def expressions() -> list[str]:
    """Every query of the dashboard, for all services, and of the alerts."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    found = [query.replace("$service", ".*").replace("$__rate_interval", "1m") for query in found]
    alerts = re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.+)\n)", ALERTS)
    assert len(alerts) == ALERTS.count("- alert:")
    return found + [block or line for block, line in alerts]


def selectors(node: Any) -> Iterator[str]:
    """The selectors in a query that Prometheus has parsed, without those of another time."""
    if isinstance(node, dict):
        if node.get("type") == "vectorSelector":
            matchers = [f"{it['name']}{it['type']}{json.dumps(it['value'])}" for it in node["matchers"]]
            yield "{" + ", ".join(matchers) + "}"
        for value in node.values():
            yield from selectors(value)
    elif isinstance(node, list):
        for value in node:
            yield from selectors(value)


def test_the_rules_pass_their_own_tests(engine: None) -> None:
    """`promtool test rules` and the checks of both programs, with the files as they are."""
    text = (ROOT / "docker-compose.yml").read_text()
    for name, program, *command in (
        ("prometheus", "promtool", "test", "rules", "/etc/metrics/alerts_test.yml"),
        ("prometheus", "promtool", "check", "config", "/etc/metrics/prometheus.yml"),
        ("alertmanager", "amtool", "check-config", "/etc/metrics/alertmanager.yml"),
    ):
        image = re.search(rf"prom/{name}:[\w.]+", text)[0]
        volume = f"{ROOT}/deploy/metrics:/etc/metrics:ro"
        output = run("docker", "run", "--rm", "--volume", volume, "--entrypoint", program, image, *command)
        assert "SUCCESS" in output


def test_every_selector_finds_series(stack: Monitored) -> None:
    """What the dashboard and the alerts ask for exists; a series that no program exports is found here."""
    parsed = stack.ask("parse_query", *expressions())
    wanted = {selector for tree in parsed for selector in selectors(tree)}
    assert len(wanted) > 20
    wanted = {it for it in wanted if not any(f'"{name}"' in it for name in ELSEWHERE)}

    def missing() -> list[str]:
        queries = sorted(wanted)
        answers = stack.ask("query", *queries)
        wanted.difference_update(
            query for query, data in zip(queries, answers, strict=True) if data["result"]
        )
        return sorted(wanted)

    poll(lambda: not missing(), 60, log=lambda: "\n".join(missing()))


def test_each_replica_is_found(stack: Monitored) -> None:
    """`--scale` needs no other change; each series has the name of its service."""
    options = ("--detach", "--no-build", "--no-recreate", "--no-deps", "--wait")
    stack.compose("up", *options, "--scale", f"{BUSY}=2", BUSY)
    try:
        poll(lambda: stack.value(f'count(up{{service="{BUSY}"}} == 1)') == 2)
        poll(lambda: stack.value(f'sum(server_ready{{service="{BUSY}"}})') == 2)
    finally:
        stack.compose("up", *options, "--scale", f"{BUSY}=1", BUSY)
    poll(lambda: stack.value(f'count(up{{service="{BUSY}"}})') == 1)


def test_the_applications_reach_neither_prometheus_nor_alertmanager(stack: Monitored) -> None:
    """Prometheus listens in a network of its own, although it shares one with each application."""
    for service in PROGRAMS:
        refused = inside(stack, service, CONNECT, "prometheus", "alertmanager")
        assert refused.keys() == {"prometheus", "alertmanager"}, refused


def test_an_alert_arrives(stack: Monitored) -> None:
    """`make test-alert` sends one, and says whether the receiver has accepted it."""
    run("docker", "stop", "--time", "0", f"{stack.project}-receiver")
    output = stack.make("test-alert", expect=2)
    assert "TestAlert did not arrive. The log of Alertmanager:" in output
    assert "Notify attempt failed" in output
    run("docker", "start", f"{stack.project}-receiver")
    assert "the receiver accepted it" in stack.make("test-alert")
    assert "TestAlert" in {alert["labels"]["alertname"] for alert in stack.received()}


def test_a_service_without_capacity_is_named(stack: Monitored) -> None:
    """When all threads are busy, the exporter answers, and the alert names the service and arrives."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            with suppress(httpx2.HTTPError):
                httpx2.get(stack.urls[BUSY] + "/wait", timeout=30, trust_env=False)

    def arrived() -> bool:
        labels = [alert["labels"] for alert in stack.received()]
        return ("Backlog", BUSY) in [(it["alertname"], it.get("service")) for it in labels]

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(20)]
    for client in clients:
        client.start()
    try:
        alerts = poll(lambda: stack.firing("Backlog"), log=lambda: stack.log("prometheus"))
        assert [alert["service"] for alert in alerts] == [BUSY]
        if BUSY in GUNICORN:
            alerts = poll(lambda: stack.firing("ThreadsExhausted"), log=lambda: stack.log("prometheus"))
            assert [alert["service"] for alert in alerts] == [BUSY]
        poll(arrived, log=lambda: stack.log("alertmanager"))
    finally:
        done.set()
        for client in clients:
            client.join()


def test_the_status_has_the_same_numbers(stack: Monitored) -> None:
    """`make status` counts the requests of its seconds, each once, without Prometheus."""
    stack.compose("stop", "prometheus")
    done = threading.Event()

    def load() -> None:
        while not done.wait(0.05):
            httpx2.get(stack.urls[BUSY] + f"/?{secrets.token_hex(4)}", trust_env=False)

    client = threading.Thread(target=load)
    client.start()
    try:
        lines = stack.make("status").splitlines()
    finally:
        done.set()
        client.join()
    rows = {
        line.split()[0]: dict(zip(lines[0].split(), line.split(), strict=False)) for line in lines if line
    }
    assert {"edge", "alertmanager", *PROGRAMS} <= rows.keys()
    for service in ("edge", BUSY):
        assert rows[service]["READY"] == "1/1", lines
        assert 2 < float(rows[service]["REQ/S"]) < 25, lines
