"""How long a thread waits for an answer of the database, and when it does not wait at all.

Only servers have a limit: a command such as `migrate` may take as long as it needs. Once the database has
not answered the readiness check or a request, requests are refused immediately, so that they do not
occupy the threads. The next check that succeeds ends this. Without a check, as in Docker Swarm, one
request after the other finds out.
"""

import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serving import health, settings

# Seconds in which an open connection must answer before a request uses it.
USABLE_SECONDS = 3.0
# Seconds for the whole readiness check. The probe gives up a second earlier and reports it.
CHECK_SECONDS = health.CHECK_TIMEOUT + 1
# What fails sooner got an answer, and so do the requests: a refused connection, no free one.
AT_ONCE = 1.0
# Seconds for which a check without an answer counts. Longer than the time between two of them.
REFUSED_SECONDS = 10.0
# The same of a request. Then one request may try again, and the others are refused meanwhile.
RETRY_SECONDS = 2.0

# Seconds that one answer may take in a request; None: this process is no server.
_request_seconds: float | None = None
# The time.monotonic() at which what the current thread does must have got its answers.
_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)
_asking = ContextVar("_asking", default=False)
# The time.monotonic() until which requests are refused; 0 while the database answers. Workers that were
# forked from one process share it, so that the next answer, in any worker, counts for all.
_refused_until = mmap.mmap(-1, 8)


class AwayError(Exception):
    """The database did not answer before, so that the request need not wait; or it opens no connection."""


def limit_requests() -> None:
    """Limit each answer to REQUEST_TIMEOUT seconds from now on, in this process."""
    global _request_seconds
    _request_seconds = settings.request_timeout()


def patience() -> float | None:
    """Seconds that the current thread may wait for an answer; None for no limit. Raises AwayError."""
    now = time.monotonic()
    if _request_seconds and not _asking.get() and now < refused_until():
        raise AwayError("the database did not answer a moment ago")
    deadline = _deadline.get()
    if deadline is None:
        return _request_seconds
    return min(max(0.0, deadline - now), _request_seconds or USABLE_SECONDS)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """All answers together may take so long."""
    before = _deadline.get()
    deadline = time.monotonic() + seconds
    token = _deadline.set(deadline if before is None else min(before, deadline))
    try:
        yield
    finally:
        _deadline.reset(token)


def refused_until() -> float:
    """Until when requests are refused, as a time.monotonic()."""
    return float(struct.unpack_from("d", _refused_until)[0])


def refuse_until(moment: float) -> None:
    """Refuse requests until then, or until the database answers; 0 if it answers."""
    struct.pack_into("d", _refused_until, 0, moment)


@contextmanager
def check() -> Iterator[None]:
    """What runs in here is the readiness check: never refused, and its result decides about requests."""
    token = _asking.set(True)
    try:
        with within(CHECK_SECONDS), ask(REFUSED_SECONDS):
            yield
    finally:
        _asking.reset(token)


@contextmanager
def ask(seconds: float = RETRY_SECONDS) -> Iterator[None]:
    """What runs in here shows whether the database answers; if not, refuse requests for so long.

    Raises AwayError where it is known that it does not answer.
    """
    patience()
    started = time.monotonic()
    if refused_until() and not _asking.get():
        # This request tries again; the others are refused meanwhile.
        refuse_until(started + USABLE_SECONDS + RETRY_SECONDS)
    token = _asking.set(True)
    try:
        yield
    except Exception:
        ended = time.monotonic()
        late = ended - started > AT_ONCE
        refuse_until(max(refused_until(), ended + seconds) if late else 0)
        raise
    else:
        refuse_until(0)
    finally:
        _asking.reset(token)
