"""Which peers are trusted, by address, network, host name or unix socket, while names change or fail."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from serving import peers, settings


class Resolver:
    """Host names and their addresses; counts lookups, and can fail or hang."""

    def __init__(self) -> None:
        self.known: dict[str, set[str]] = {}
        self.asked = 0
        self.fails = False
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, name: str) -> frozenset[str]:
        """The name's addresses."""
        self.asked += 1
        self.answers.wait(10)
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return frozenset(self.known.get(name, ()))


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """Instead of the system's."""
    resolver = Resolver()
    monkeypatch.setattr(peers, "addresses", resolver)
    yield resolver
    resolver.answers.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the time on."""
    now = [1000.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def settled(trusted: peers.Trusted, peer: str) -> bool:
    """The answer once a lookup that this question started has ended."""
    return trusted.after_lookup(peer)


def test_a_name_is_followed(resolver: Resolver, clock: Callable[[float], None]) -> None:
    """New addresses count within a second, old ones no longer than five."""
    resolver.known["proxy"] = {"10.0.0.2"}
    trusted = peers.Trusted(["proxy", "192.0.2.0/24"])
    assert "192.0.2.9" in trusted
    assert resolver.asked == 0
    assert settled(trusted, "10.0.0.2")
    assert not settled(trusted, "10.0.0.3")
    assert resolver.asked == 1
    resolver.known["proxy"] = {"10.0.0.3"}
    clock(1.1)
    assert settled(trusted, "10.0.0.3")
    assert not settled(trusted, "10.0.0.2")
    resolver.known.clear()
    assert "10.0.0.3" in trusted
    clock(5.1)
    settled(trusted, "10.0.0.9")
    assert "10.0.0.3" not in trusted


def test_trust_survives_a_resolver_that_fails(resolver: Resolver, clock: Callable[[float], None]) -> None:
    """The last good addresses count for a minute; a name that is gone counts no longer."""
    resolver.known["proxy"] = {"10.0.0.2"}
    trusted = peers.Trusted(["proxy"])
    assert settled(trusted, "10.0.0.2")
    resolver.fails = True
    for _ in range(9):
        clock(6)
        settled(trusted, "10.0.0.9")
        assert "10.0.0.2" in trusted
    clock(7)
    settled(trusted, "10.0.0.9")
    assert "10.0.0.2" not in trusted
    resolver.fails = False
    clock(2)
    assert settled(trusted, "10.0.0.2")


def test_a_question_never_waits_for_the_resolver(resolver: Resolver) -> None:
    """A resolver that hangs: known peers are answered, one lookup is in flight, a wait is bounded."""
    resolver.known["proxy"] = {"10.0.0.2"}
    trusted = peers.Trusted(["proxy"])
    assert settled(trusted, "10.0.0.2")
    resolver.answers.clear()
    trusted._asked = float("-inf")
    begun = time.monotonic()
    assert all("10.0.0.2" in trusted for _ in range(1000))
    assert not any("10.0.0.9" in trusted for _ in range(1000))
    assert time.monotonic() - begun < 0.5
    assert resolver.asked == 2
    assert not trusted.after_lookup("10.0.0.9")
    assert 0.9 < time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("error", "found"), [(socket.EAI_NONAME, frozenset()), (socket.EAI_AGAIN, None), (socket.EAI_FAIL, None)]
)
def test_only_a_missing_name_has_no_addresses(
    error: int, found: frozenset[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other error says something about the resolver, not about the name."""

    def fail(*arguments: object, **options: object) -> None:
        raise socket.gaierror(error, "failed")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    if found is None:
        with pytest.raises(OSError, match="failed"):
            peers.addresses("proxy")
    else:
        assert peers.addresses("proxy") == found


def test_an_ipv4_mapped_peer_is_its_ipv4_address() -> None:
    """A socket for both families names IPv4 peers so."""
    trusted = peers.Trusted(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])
    assert "::ffff:127.0.0.1" in trusted
    assert "::ffff:10.1.2.3" in trusted
    assert "::ffff:192.0.2.1" not in trusted
    assert "::ffff:c000:201" not in trusted
    assert "2001:db8::1" in trusted
    assert peers.plain("::ffff:10.1.2.3") == "10.1.2.3"
    assert peers.plain("::1") == "::1"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.7:51234", "203.0.113.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7:80, 127.0.0.1:9", "203.0.113.7"),
        ("203.0.113.7:port", "127.0.0.1"),
        ("[203.0.113.7", "127.0.0.1"),
        ("unknown", "127.0.0.1"),
        ("_hidden", "127.0.0.1"),
        ("203.0.113.7, ", "127.0.0.1"),
    ],
)
def test_the_client_of_a_forwarded_header(forwarded: str, client: str) -> None:
    """Load balancers add ports; what is no address ends the search."""
    assert peers.Trusted(["127.0.0.1"]).client("127.0.0.1", forwarded) == client


def test_a_unix_socket_is_trusted_by_its_word() -> None:
    """Its peer has no address."""
    assert "" in peers.Trusted(["unix"])
    assert "" not in peers.Trusted(["127.0.0.1", "0.0.0.0/0"])
    assert peers.Trusted(["unix"]).names == []


def test_a_star_is_refused_with_the_way_out() -> None:
    """Platforms set it; the line says what to write instead."""
    with pytest.raises(settings.SettingError, match=r"or 0\.0\.0\.0/0,::/0 if only a proxy can connect"):
        peers.Trusted(["*"])
    assert "203.0.113.7" in peers.Trusted(["0.0.0.0/0", "::/0"])
