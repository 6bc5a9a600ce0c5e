"""The exporter: answers /metrics from the workers' files and from /proc, whatever the workers do."""

import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit  # Django's

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serving import health, settings, sizing
from serving.metrics import parent

# Seconds in which /readyz must answer, and seconds that a client gets for its request.
READY_TIMEOUT, REQUEST_TIMEOUT = 2, 5

# How often the workers' files are read until all are complete, and seconds between two readings.
READINGS, READING_PAUSE = 50, 0.02

# States of a socket in /proc/net/tcp.
ESTABLISHED, LISTEN = "01", "0A"

# An address to connect to, for a server that listens on all of them.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class Server(Collector):
    """Every series: those of the workers, and those that only an observer can see."""

    def __init__(self, directory: str, addresses: Iterable[str]) -> None:
        self.files = MultiProcessCollector(None, directory)
        self.addresses = [(host, int(port)) for host, _, port in (a.rpartition(":") for a in addresses)]
        self.database_port = 0
        self.database_port = database_port_of_django()

    def collect(self) -> Iterator[Metric]:
        """What is true now."""
        found = {family.name: family for family in counted(self.files)}
        processes = found.pop("server_worker_process", None)
        workers = {
            sample.labels["pid"]: int(sample.value)
            for sample in (processes.samples if processes else ())
            if sample.value
        }
        waiting = total(found.pop("server_waiting"))
        active = found["http_server_active_requests"]
        if total(found["server_threads"]):
            active.samples = [Sample(active.name, {}, total(found["server_threads_busy"]))]
        else:
            del found["server_threads"], found["server_threads_busy"]
        if not total(found["server_event_loop_delay_seconds"]):
            del found["server_event_loop_delay_seconds"], found["server_websockets"]
            if "server_threads" not in found:
                del found[active.name]  # workers that do not count them
        yield from found.values()
        yield GaugeMetricFamily("server_workers", "Worker processes", len(workers))
        memory = GaugeMetricFamily(
            "server_worker_memory_bytes",
            "Memory of a worker; its part of pages that it shares with others (PSS)",
            labels=["worker"],
        )
        for slot, pid in sorted(workers.items()):
            if size := proportional_size(pid):
                memory.add_metric([slot], size)
        yield memory
        yield from age_of_backup_of_django()
        if limit := sizing.limits().memory:
            yield GaugeMetricFamily("server_memory_limit_bytes", "Memory limit of this container", limit)
        if self.addresses:
            sockets = [*open_sockets()]
            ports = {port for _, port in self.addresses}
            backlog = sum(size for port, _, state, size in sockets if state == LISTEN and port in ports)
            yield GaugeMetricFamily(
                "server_backlog_connections",
                "Connections that wait to be accepted or, with threads, for a thread",
                backlog + waiting,
            )
            yield GaugeMetricFamily(
                "server_ready", "Whether /readyz answers 200", is_ready(*self.addresses[0])
            )
            if self.database_port:
                connections = sum(
                    state == ESTABLISHED and port == self.database_port for _, port, state, _ in sockets
                )
                yield GaugeMetricFamily(
                    "server_database_connections", "Open connections to the database", connections
                )


def database_port_of_django() -> int:
    """The port of DATABASE_URL or of Compose's service postgres; 0 for a database in a file."""
    if {"postgres", "*"} & set(settings.words("COMPOSE_PROFILES", "")):
        return 5432
    with suppress(settings.SettingError, ValueError):
        url = urlsplit(settings.secret("DATABASE_URL"))
        if url.hostname:
            return url.port or 5432
    return 0


def age_of_backup_of_django() -> Iterator[Metric]:
    """The age of the newest backup that `make restore-test` has restored; nothing without one."""
    with suppress(OSError, ValueError):
        made = int((Path(settings.text("DATA_DIR", ".data")) / "backup_time").read_text(encoding="ascii"))
        text = "Age of the newest backup that was restored for a test"
        yield GaugeMetricFamily("backup_age_seconds", text, time.time() - made)


def counted(files: MultiProcessCollector) -> list[Metric]:
    """What the workers have counted. A file that a worker has just made is empty for a moment."""
    for _ in range(READINGS - 1):
        with suppress(struct.error):
            return [*files.collect()]
        time.sleep(READING_PAUSE)
    return [*files.collect()]


def open_sockets() -> Iterator[tuple[int, int, str, int]]:
    """Each TCP socket of this network namespace: local port, remote port, state, what waits in it.

    What waits in a listening socket are connections (https://man7.org/linux/man-pages/man5/proc_net.5.html).
    """
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError), Path(file).open(encoding="ascii") as lines:
            next(lines, "")
            for line in lines:
                _, local, remote, state, queues, *_ = line.split()
                ports = (int(address.rpartition(":")[2], 16) for address in (local, remote))
                yield *ports, state, int(queues.rpartition(":")[2], 16)  # type: ignore[misc]  # two ports


def total(family: Metric) -> float:
    """The sum of a family's values."""
    return sum(sample.value for sample in family.samples)


def proportional_size(pid: int) -> int:
    """A process's PSS in bytes; 0 if it has ended or the system does not tell."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def is_ready(host: str, port: int) -> bool:
    """Whether the server says that it is ready."""
    connection = HTTPConnection(LOOPBACK.get(host, host), port, timeout=READY_TIMEOUT)
    try:
        connection.request("GET", health.READY, headers={"Connection": "close"})
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


class Handler(MetricsHandler):
    """GET /metrics."""

    timeout = REQUEST_TIMEOUT

    def handle(self) -> None:
        """Say nothing of a client that goes before its answer, as Prometheus does after scrape_timeout."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:  # noqa: N802
        """Answer with every series."""
        if self.path.partition("?")[0] == "/metrics":
            super().do_GET()
        else:
            self.send_error(404)


class Exporter(ThreadingHTTPServer):
    """Ends with the server, however that ends."""

    def __init__(self, address: tuple[str, int], handler: type[Handler], owner: int, directory: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.owner, self.directory = owner, directory
        super().__init__(address, handler)

    def service_actions(self) -> None:
        """Called twice a second."""
        if os.getppid() != self.owner:
            shutil.rmtree(self.directory, ignore_errors=True)
            sys.exit()


def main() -> None:
    """`python -m serving.metrics DIRECTORY PROCESS ADDRESS ...`: those of the server."""
    # A signal to the whole group or container is for the server, which may drain now.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    directory, owner, *addresses = sys.argv[1:]
    registry = CollectorRegistry()
    registry.register(Server(directory, addresses))
    address = parent.host(), parent.port()
    try:
        exporter = Exporter(address, Handler.factory(registry), int(owner), directory)
    except OSError as error:
        settings.refuse("METRICS_PORT", address[1], f"free to listen on ({error.strerror})")
    exporter.serve_forever()
