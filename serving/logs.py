"""One log format for both servers: what logging.json names, and the access line.

Gunicorn reads logging.json through `logconfig_json`, Uvicorn through `log_config`.
"""

import logging
import os
import time
from contextlib import suppress

from serving import health, peers, settings

LEVELS = ("critical", "error", "warning", "info", "debug")
LEVEL = settings.choice("LOG_LEVEL", LEVELS, "info").upper()

_ACCESS = LEVEL in ("INFO", "DEBUG")
_STDOUT = 1
# The second that was formatted last, and its text.
_clock = (0, "")


class RequestID(logging.Filter):
    """Give every record the id of the request that it belongs to, or "-"."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set `record.request_id`."""
        record.request_id = peers.request_id.get()
        return True


def access(
    client: str, method: str, path: str, query: str, status: object, size: object, seconds: float
) -> None:
    """Write one request's line, as logging.json would format it; none for a probe.

    `size` is in bytes, `seconds` the duration. It passes the logging module by, because a line
    through that costs three times as much.
    """
    global _clock
    if not _ACCESS or path in health.PATHS:
        return
    now = time.time()
    second = int(now)
    if _clock[0] != second:
        _clock = (second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second)))
    target = f"{path}?{query}" if query else path
    if not target.isprintable() or '"' in target:
        # No client writes lines or fields of its own into the log.
        target = target.encode("unicode_escape").decode().replace('"', "%22")
    line = (
        f"{_clock[1]},{int(now % 1 * 1000):03d} INFO [{os.getpid()}] [{peers.request_id.get()}] "
        f'{client} "{method} {target}" {status} {size} {seconds * 1000:.0f}ms\n'
    )
    # One write, so that lines of several workers do not mix; no request fails for a lost line.
    with suppress(OSError):
        os.write(_STDOUT, line.encode())
