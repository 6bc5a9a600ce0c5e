"""Whose forwarded headers count: only those of a trusted proxy.

Gunicorn never rewrites the client's address, Werkzeug's ProxyFix and Uvicorn's `*` believe
whoever connects. Here the peer's own address decides, for WSGI and ASGI alike.
"""

import re
import secrets
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


class Trusted:
    """The set of proxies' addresses; `peer in trusted` is cached per address."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Raises SettingError for what is no address or network; `*` is none, on purpose."""
        self.networks = []
        for network in networks:
            try:
                self.networks.append(ip_network(network))
            except ValueError:
                refused = "addresses or networks of your proxies, such as 10.0.0.2,172.18.0.0/16"
                settings.refuse("FORWARDED_ALLOW_IPS", network, refused)
        self._known = lru_cache(maxsize=4096)(self._check)

    def __contains__(self, address: object) -> bool:
        return self._known(str(address))

    def _check(self, address: str) -> bool:
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self.networks)

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


def trusted() -> Trusted:
    """The peers named by FORWARDED_ALLOW_IPS (comma-separated), this machine by default."""
    return Trusted(settings.words("FORWARDED_ALLOW_IPS", "127.0.0.1,::1"))


def new_request_id(candidate: str | None) -> str:
    """The proxy's X-Request-ID when it is well-formed, else a new one (32 hexadecimal digits)."""
    return candidate if candidate and _WELL_FORMED.fullmatch(candidate) else secrets.token_hex(16)
