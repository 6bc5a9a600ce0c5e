"""One log format for both servers: the classes that logging.json names, and the access line.

Gunicorn reads logging.json through `logconfig_json`, Uvicorn through `log_config`. Times are UTC,
in every service and whatever TZ says, with the offset: 2026-11-28T09:30:00.123+00:00.
"""

import logging
import os
import re
import time
from contextlib import suppress
from functools import lru_cache

from serving import health, peers, settings

LEVELS = ("critical", "error", "warning", "info", "debug")
LEVEL = settings.choice("LOG_LEVEL", LEVELS, "info").upper()

_ACCESS = LEVEL in ("INFO", "DEBUG")
_STDOUT = 1


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def timestamp(seconds: float) -> str:
    """A moment, given in seconds since 1970, in UTC with milliseconds and offset."""
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03d}+00:00"


class Line(logging.Formatter):
    """A formatter whose `asctime` is `timestamp`."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """The record's time."""
        return timestamp(record.created)


class RequestID(logging.Filter):
    """Give every record the id of the request that it belongs to, or "-"."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set `record.request_id`."""
        record.request_id = peers.request_id.get()
        return True


class Brief(logging.Handler):
    """Write a record again as a warning in one line, without a traceback.

    For loggers whose errors any client can cause: a stranger must not be able to fill the log.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the message to the root logger, at most 500 characters of it."""
        message = record.getMessage().encode("unicode_escape").decode()[:500]
        logging.getLogger().warning("%s: %s", record.name, message)


def without_values(query: str) -> str:
    """A query string whose values are `*`: they may be passwords or tokens, their names are not.

    A part without a name may be a value as a whole: `page=2&secret` becomes `page=*&*`.
    """
    names = (name if equals else "" for name, equals, _ in (part.partition("=") for part in query.split("&")))
    return "&".join(f"{name}=*" if name else "*" for name in names)


def without_queries(message: str) -> str:
    """A server's message about a request, without what follows a question mark in it."""
    return re.sub(r"\?[^\s'\"]*", "?*", message)


def access(
    client: str, method: str, path: str, query: str, status: object, size: object, seconds: float
) -> None:
    """Write one request's line, in the format of logging.json; none for a probe.

    `size` is in bytes, `seconds` the duration. The line does not go through the logging module,
    which would cost three times as much.
    """
    if not _ACCESS or path in health.PATHS:
        return
    target = f"{path}?{without_values(query)}" if query else path
    if not target.isprintable() or '"' in target:
        # A client must not write lines or fields of its own into the log.
        target = target.encode("unicode_escape").decode().replace('"', "%22")
    line = (
        f"{timestamp(time.time())} INFO [{os.getpid()}] [{peers.request_id.get()}] "
        f'{client} "{method} {target}" {status} {size} {seconds * 1000:.0f}ms\n'
    )
    # One write, so that lines of several workers do not mix. A line that is lost fails no request.
    with suppress(OSError):
        os.write(_STDOUT, line.encode())
