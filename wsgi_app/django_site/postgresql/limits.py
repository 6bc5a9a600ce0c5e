"""How long a thread waits for an answer of the database, and when it does not wait at all.

Only servers have a limit: a command such as `migrate` may take as long as it needs. While the readiness
check gets no answer, requests are refused immediately, so that they do not occupy the threads.
"""

import mmap
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serving import health, settings

# Seconds in which an open connection must answer before a request uses it.
USABLE_SECONDS = 5.0
# Seconds for the whole readiness check. The probe gives up a second earlier and reports it.
CHECK_SECONDS = health.CHECK_TIMEOUT + 1
# A check that fails sooner got an answer, and so do the requests: a refused connection, no free one.
AT_ONCE = 1.0
# Seconds for which a check without an answer counts. Longer than the time between two of them.
REFUSED_SECONDS = 10.0

# Seconds that one answer may take in a request; None: this process is no server.
_request_seconds: float | None = None
# The time.monotonic() at which what the current thread does must have got its answers.
_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)
_in_check = ContextVar("_in_check", default=False)
# The time.monotonic() until which requests are refused. Workers that were forked from one process
# share it, so that the next check that succeeds, in any worker, ends it for all.
_refused_until = mmap.mmap(-1, 8)


class RefusedError(Exception):
    """The database did not answer the readiness check; the request need not wait for it, too."""


def limit_requests() -> None:
    """Limit each answer to REQUEST_TIMEOUT seconds from now on, in this process."""
    global _request_seconds
    _request_seconds = settings.request_timeout()


def patience() -> float | None:
    """Seconds that the current thread may wait for an answer; None for no limit. Raises RefusedError."""
    now = time.monotonic()
    if _request_seconds and not _in_check.get() and now < struct.unpack_from("d", _refused_until)[0]:
        raise RefusedError("the database does not answer the readiness check")
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


@contextmanager
def check() -> Iterator[None]:
    """What runs in here is the readiness check: never refused, and its result decides about requests."""
    started = time.monotonic()
    token = _in_check.set(True)
    try:
        with within(CHECK_SECONDS):
            yield
    except Exception:
        ended = time.monotonic()
        if ended - started > AT_ONCE:
            struct.pack_into("d", _refused_until, 0, ended + REFUSED_SECONDS)
        raise
    else:
        struct.pack_into("d", _refused_until, 0, 0.0)
    finally:
        _in_check.reset(token)
