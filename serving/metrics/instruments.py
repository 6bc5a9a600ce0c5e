"""What a worker measures. Only serving.metrics.load imports this.

prometheus-client keeps the figures of each process in files of that process, and the exporter adds
them up. Its own files are named by process id, so that each recycled worker leaves some behind. Here
they are named by slot: a new worker takes over a free slot and goes on counting where the last one
stopped.
"""

import asyncio
import os
import time
from bisect import bisect_right
from collections import defaultdict, deque
from itertools import pairwise
from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram, values

from serving.metrics import DIRECTORY, SLOT

# The slot of the process that starts workers and is none itself.
PARENT = "parent"

# A label has this value for an unknown method, and for a request without a route: a client must not
# be able to create series.
OTHER = "_OTHER"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})

# The names and buckets of OpenTelemetry's conventions for HTTP.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

# Seconds between two looks at the event loop, and for how long the largest delay is shown.
LOOK, WINDOW = 0.1, 15

slot = os.environ.get(SLOT, PARENT)
if DIRECTORY in os.environ:
    values.ValueClass = values.MultiProcessValue(lambda: slot)

duration = Histogram(
    "http_server_request_duration_seconds",
    "Time from the request's arrival at the application to the end of its response",
    ("http_request_method", "http_route", "http_response_status_code"),
    buckets=BUCKETS,
)
queue = Histogram(
    "http_server_queue_duration_seconds",
    "Time from the edge, which has received the request, to the application",
    buckets=BUCKETS,
)
# Of event loops; a worker with threads has one for each of its busy threads.
active = Gauge("http_server_active_requests", "Requests in progress", multiprocess_mode="livesum")
websockets = Gauge("server_websockets", "Open WebSockets", multiprocess_mode="livesum")
threads = Gauge("server_threads", "Threads that serve requests", multiprocess_mode="livesum")
threads_busy = Gauge("server_threads_busy", "Threads that serve a request now", multiprocess_mode="livesum")
# For the exporter, which adds them to those that the kernel keeps.
waiting = Gauge("server_waiting", "Requests that wait for a thread", multiprocess_mode="livesum")
loop_delay = Gauge(
    "server_event_loop_delay_seconds",
    f"The longest time by which an event loop was late in the last {WINDOW} to {2 * WINDOW} seconds",
    multiprocess_mode="livemax",
)
# For the exporter, which shows what it finds about these processes.
process = Gauge("server_worker_process", "The id of each worker's process", multiprocess_mode="liveall")
exits = Counter("server_worker_exits", "Workers that have ended, by cause", ("cause",))


# What has been observed and is not written yet. A worker that calls `write` regularly, between
# requests, sets `collecting`: writing each observation would cost a request several times as much.
collecting = False
_observed: defaultdict[Histogram, deque[float]] = defaultdict(deque)
# Each combination of labels, so that a request does not look it up in prometheus-client.
_durations: dict[tuple[str, str, str], Histogram] = {}


def collect() -> None:
    """Keep what is observed until `write` is called, which must be at least once a second."""
    global collecting
    collecting = True


def observe(histogram: Histogram, seconds: float) -> None:
    """Add one observation."""
    if collecting:
        _observed[histogram].append(seconds)
    else:
        histogram.observe(seconds)


def write() -> None:
    """Write what has been observed, all of one histogram and one bucket at a time."""
    for histogram, observed in [*_observed.items()]:
        seconds = sorted(observed.popleft() for _ in range(len(observed)))  # threads may go on adding
        if seconds:
            histogram._sum.inc(sum(seconds))
            ends = [bisect_right(seconds, bound) for bound in BUCKETS] + [len(seconds)]
            for bucket, (begin, end) in enumerate(pairwise([0, *ends])):
                if end > begin:
                    histogram._buckets[bucket].inc(end - begin)


def begin_worker(number: str | None = None) -> None:
    """Count in this slot from now on, and let the exporter find this process."""
    global slot
    slot = number or slot
    process.set(os.getpid())


def queued(sent: str) -> None:
    """Observe how long ago the edge sent a request; `sent` is its X-Request-Start, in milliseconds."""
    if len(sent) < 16 and sent.isascii() and sent.isdigit():
        observe(queue, max(0.0, time.time() - int(sent) / 1000))


def answered(method: str, route: str, status: str, seconds: float) -> None:
    """Observe a request that has been answered."""
    if method not in METHODS:
        method = OTHER
    key = method, route, status
    found = _durations.get(key)
    if found is None:
        # A route that does not allow the method has not matched: not every framework names it.
        found = duration.labels(method, OTHER if status == "405" or not route else route, status)
        _durations[key] = found
    observe(found, seconds)


class Request:
    """A request from its arrival at the application to the end of its response."""

    __slots__ = ("method", "route", "started", "status")

    def __init__(self, method: str) -> None:
        self.method, self.route, self.status = method, "", ""
        self.started = perf_counter()

    def respond(self, status: str, route: str) -> None:
        """The response starts."""
        self.status, self.route = status, route

    def end(self, status: str = "") -> None:
        """The response has ended, or there is none: then with this status."""
        if self.method:
            if status := self.status or status:
                answered(self.method, self.route, status, perf_counter() - self.started)
            self.method = ""


class Loop:
    """What goes on in an event loop. It writes ten times a second at most: requests are too many."""

    def __init__(self) -> None:
        self.requests = {"http": 0, "websocket": 0}
        self.running = False
        self.expected = self.changed = 0.0
        self.longest = [0.0, 0.0]  # in this window, and in the one before

    def watch(self) -> None:
        """Look at the running event loop from now on."""
        if not self.running:
            self.running = True
            collect()
            loop = asyncio.get_running_loop()
            self.changed = loop.time()
            self._wait(loop)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self.expected = loop.time() + LOOK
        loop.call_at(self.expected, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self.longest[0] = max(self.longest[0], now - self.expected)
        if now - self.changed > WINDOW:
            self.changed, self.longest = now, [0.0, self.longest[0]]
        loop_delay.set(max(self.longest))
        active.set(self.requests["http"])
        websockets.set(self.requests["websocket"])
        write()
        self._wait(loop)


loop = Loop()
