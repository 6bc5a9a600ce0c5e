"""Which peers' forwarded headers count: only those of a trusted proxy.

Gunicorn never rewrites the client's address; Werkzeug's ProxyFix and Uvicorn's `*` trust every
peer. Here the address of the peer decides, for WSGI and ASGI in the same way.
"""

import random
import re
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address, ip_network

from serving import settings

# The request that this thread or task works on, for every log line that it writes.
request_id: ContextVar[str] = ContextVar("request_id", default="-")
# The trace that the request belongs to, by its `traceparent` header.
trace_id: ContextVar[str] = ContextVar("trace_id", default="")

# Headers that only a proxy may send; those of other peers are removed.
FORWARDED = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-start",
)

# In FORWARDED_ALLOW_IPS: the peer of a unix socket, which has no address.
UNIX = "unix"

# Seconds that a name's addresses are used before it is resolved again. A proxy that was replaced may
# have another address, so an unknown peer makes us ask earlier, but at most once a second.
FRESH, ASK_AGAIN = 5, 1
# Seconds that the last addresses are used while the resolver fails.
KEPT = 60
# Seconds that a request from an unknown peer waits for a lookup that may make the peer known.
LOOKUP_WAIT = 1

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{8,128}", re.ASCII)
# The last label has a letter; otherwise a mistyped address would be taken for a name.
_HOST_NAME = re.compile(r"([a-z0-9_-]+\.)*[a-z0-9_-]*[a-z][a-z0-9_-]*", re.IGNORECASE)
# Version, trace, parent and flags (https://www.w3.org/TR/trace-context/). The edge has the same pattern.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
# An address with a port, as some load balancers write it: 203.0.113.7:51234 or [2001:db8::1]:443.
_WITH_PORT = re.compile(r"(?P<v4>[0-9.]+):[0-9]{1,5}|\[(?P<v6>[0-9A-Fa-f:.]+)\](:[0-9]{1,5})?")


class Trusted:
    """The set of proxies: addresses and networks, host names, and the word `unix`.

    `peer in trusted` never waits. Names are resolved in a thread, one lookup at a time; the
    addresses found before are used meanwhile.
    """

    def __init__(self, proxies: Sequence[str]) -> None:
        """Raises SettingError for anything that is no address, network or name, such as `*`."""
        self.unix = UNIX in proxies
        self.networks, self.names = [], []
        for proxy in proxies:
            try:
                self.networks.append(ip_network(proxy))
            except ValueError:
                if not _HOST_NAME.fullmatch(proxy):
                    allowed = "addresses, networks or host names of your proxies"
                    example = "such as 172.18.0.0/16,proxy"
                    everybody = "or 0.0.0.0/0,::/0 if only a proxy can connect" if proxy == "*" else ""
                    settings.refuse(
                        "FORWARDED_ALLOW_IPS", proxy, ", ".join(filter(None, (allowed, example, everybody)))
                    )
                if proxy != UNIX:
                    self.names.append(proxy)
        self._in_networks = lru_cache(maxsize=4096)(self._compare)
        self._resolved: frozenset[str] = frozenset()
        # Each name's addresses and when they were found.
        self._found: dict[str, tuple[frozenset[str], float]] = {}
        self._asked = float("-inf")
        self._lock = threading.Lock()
        self._lookup: Future[None] | None = None

    def __contains__(self, peer: object) -> bool:
        address = str(peer)
        if not address:
            return self.unix
        return self._in_networks(address) or (bool(self.names) and self._in_names(address))

    def _compare(self, address: str) -> bool:
        try:
            ip = ip_address(plain(address))
        except ValueError:
            return False
        return any(ip in network for network in self.networks)

    def _in_names(self, address: str) -> bool:
        address = plain(address)
        known = address in self._resolved
        if time.monotonic() - self._asked > (FRESH if known else ASK_AGAIN):
            self._start_lookup()
        return known

    def lookup(self, peer: str) -> "Future[None] | None":
        """The running lookup that may make this unknown peer a trusted one, if there is one.

        A caller waits for it, for LOOKUP_WAIT seconds at most, and asks again. Otherwise the first
        request of a proxy that was just replaced would count as a stranger's.
        """
        return None if peer in self else self._lookup

    def after_lookup(self, peer: str) -> bool:
        """Whether `peer` is trusted once a running lookup has ended. Only for a thread that can wait."""
        if lookup := self.lookup(peer):
            wait([lookup], LOOKUP_WAIT)
        return peer in self

    def _start_lookup(self) -> None:
        with self._lock:
            if self._lookup is None:
                self._asked = time.monotonic()
                self._lookup = Future()
                threading.Thread(target=self._resolve, name="resolver", daemon=True).start()

    def _resolve(self) -> None:
        """Resolve all names, then end the lookup."""
        now = time.monotonic()
        for name in self.names:
            try:
                self._found[name] = (addresses(name), now)
            except (OSError, UnicodeError):
                # The resolver failed, which says nothing about the name.
                if now - self._found.get(name, (None, now))[1] > KEPT:
                    del self._found[name]
        self._resolved = frozenset().union(*(found for found, _ in self._found.values()))
        with self._lock:
            lookup, self._lookup = self._lookup, None
            self._asked = time.monotonic()
        if lookup is not None:
            lookup.set_result(None)

    def client(self, peer: str, forwarded_for: str) -> str:
        """The right-most address of X-Forwarded-For that is no trusted proxy; otherwise `peer`.

        Entries further left were written by the client, who may have written anything.
        """
        for entry in reversed(forwarded_for.split(",")):
            hop = without_port(entry.strip())
            try:
                ip_address(hop)
            except ValueError:
                return peer
            peer = plain(hop)
            if peer not in self:
                return peer
        return peer


@lru_cache(maxsize=4096)
def plain(address: str) -> str:
    """The IPv4 address of an IPv4-mapped one (`::ffff:10.0.0.5`, on a socket for both families)."""
    if not address.startswith("::"):
        return address
    try:
        return str(getattr(ip_address(address), "ipv4_mapped", None) or address)
    except ValueError:
        return address


def without_port(address: str) -> str:
    """The address of `203.0.113.7:51234` or `[2001:db8::1]:443`."""
    found = _WITH_PORT.fullmatch(address)
    return (found["v4"] or found["v6"]) if found else address


def addresses(name: str) -> frozenset[str]:
    """The addresses of `name`; none when there is no such name.

    Raises OSError when the resolver fails.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return frozenset()
        raise
    return frozenset(plain(str(entry[4][0])) for entry in found)


def trusted() -> Trusted:
    """The peers named by FORWARDED_ALLOW_IPS (comma-separated), this machine by default."""
    return Trusted(settings.words("FORWARDED_ALLOW_IPS", "127.0.0.1,::1"))


def request_id_for(candidate: str | None) -> str:
    """The proxy's X-Request-ID when it is well-formed, otherwise a new id (32 hexadecimal digits)."""
    if candidate and _WELL_FORMED.fullmatch(candidate):
        return candidate
    # An id is no secret: without a system call, and reseeded in each forked worker.
    return f"{random.getrandbits(128):032x}"


def trace_id_for(traceparent: str | None) -> str:
    """The id in a `traceparent` header (W3C Trace Context); "" for none and for a malformed one."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    return found[1] if found else ""
