"""Whose forwarded headers count: only those of a trusted proxy.

Gunicorn never rewrites the client's address, Werkzeug's ProxyFix and Uvicorn's `*` believe
whoever connects. Here the peer's own address decides, for WSGI and ASGI alike.
"""

import re
import secrets
import socket
import time
from collections.abc import Sequence
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address, ip_network

from serving import settings

# The request that this thread or task works on, for every log line of it.
request_id: ContextVar[str] = ContextVar("request_id", default="-")

# Headers that only a proxy may send; a stranger's are removed.
FORWARDED = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-real-ip",
)

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{8,128}", re.ASCII)


# The last label has a letter, or a mistyped address would pass for a name.
_HOST_NAME = re.compile(r"([a-z0-9_-]+\.)*[a-z0-9_-]*[a-z][a-z0-9_-]*", re.IGNORECASE)
# Seconds that a name's addresses count: a proxy that starts again may get another address, and
# another container its old one. A stranger makes us ask at most once a second.
_FRESH, _ASK_AGAIN = 5, 1


class Trusted:
    """The set of proxies: addresses and networks, cached per peer, and host names."""

    def __init__(self, proxies: Sequence[str]) -> None:
        """Raises SettingError for what is no address, network or name; `*` is none, on purpose."""
        self.networks, self.names = [], []
        for proxy in proxies:
            try:
                self.networks.append(ip_network(proxy))
            except ValueError:
                if not _HOST_NAME.fullmatch(proxy):
                    allowed = "addresses, networks or host names of your proxies"
                    settings.refuse("FORWARDED_ALLOW_IPS", proxy, f"{allowed}, such as 172.18.0.0/16,proxy")
                self.names.append(proxy)
        self._known = lru_cache(maxsize=4096)(self._check)
        self._resolved: frozenset[str] = frozenset()
        self._asked = float("-inf")

    def __contains__(self, address: object) -> bool:
        return self._known(str(address)) or (bool(self.names) and self._named(str(address)))

    def _check(self, address: str) -> bool:
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self.networks)

    def _named(self, address: str) -> bool:
        now = time.monotonic()
        if now - self._asked > (_FRESH if address in self._resolved else _ASK_AGAIN):
            self._resolved = frozenset(found for name in self.names for found in addresses(name))
            self._asked = now
        return address in self._resolved

    def client(self, peer: str, forwarded_for: str) -> str:
        """The right-most address of X-Forwarded-For that is no proxy of ours; else `peer`.

        Entries further left were written by the client, who may have written anything.
        """
        for hop in reversed(forwarded_for.split(",")):
            hop = hop.strip()
            try:
                ip_address(hop)
            except ValueError:
                return peer
            if hop not in self:
                return hop
            peer = hop
        return peer


def addresses(name: str) -> set[str]:
    """What the name resolves to now; nothing when nobody has it."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def trusted() -> Trusted:
    """The peers named by FORWARDED_ALLOW_IPS (comma-separated), this machine by default."""
    return Trusted(settings.words("FORWARDED_ALLOW_IPS", "127.0.0.1,::1"))


def new_request_id(candidate: str | None) -> str:
    """The proxy's X-Request-ID when it is well-formed, else a new one (32 hexadecimal digits)."""
    return candidate if candidate and _WELL_FORMED.fullmatch(candidate) else secrets.token_hex(16)
