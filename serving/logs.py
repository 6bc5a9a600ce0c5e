"""One log format for both servers: the classes that logging.json names, and the access line.

Gunicorn reads logging.json through `logconfig_json`, Uvicorn through `log_config`. Times are UTC,
in every service and whatever TZ says, with the offset: 2026-11-28T09:30:00.123+00:00.
LOG_FORMAT=json writes each event as one JSON object in one line, with the names of the edge's log.
docs/operations.md lists the fields.
"""

import json
import logging
import logging.config
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from serving import health, peers, settings

LEVELS = ("critical", "error", "warning", "info", "debug")
LEVEL = settings.choice("LOG_LEVEL", LEVELS, "info").upper()
JSON = settings.choice("LOG_FORMAT", ("plain", "json"), "plain") == "json"
SERVICE = settings.text("SERVICE")

# Characters of a JSON line. Docker splits a longer one, and the lines of several workers could mix.
LONGEST = 16 * 1024 - 1

_ACCESS = LEVEL in ("INFO", "DEBUG")
_STDOUT = 1
# What is not an `extra` of the application. The text of a framework's `request` may contain secrets;
# `color_message` is the message again, with colours.
_NOT_EXTRA = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "request_id"}
_NOT_EXTRA |= {"request", "color_message"}


@lru_cache(maxsize=1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def timestamp(seconds: float) -> str:
    """A moment, given in seconds since 1970, in UTC with milliseconds and offset."""
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03d}+00:00"


class PlainLine(logging.Formatter):
    """A formatter whose `asctime` is `timestamp`."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """The record's time."""
        return timestamp(record.created)


class JSONLine(logging.Formatter):
    """A formatter that writes a record, its traceback included, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  arguments that do not fit the message, or have no text
            message = f"{text_of(record.msg)} {text_of(record.args)}"
        fields = event(record.created, record.levelname, record.name, message)
        if record.exc_info and record.exc_info[0]:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        for name, value in vars(record).items():
            if name not in _NOT_EXTRA and name not in fields:
                fields[name] = serialisable(value)
        return encode(fields)


Line: type[logging.Formatter] = JSONLine if JSON else PlainLine


def event(seconds: float, level: str, logger: str, message: str, **more: object) -> dict[str, Any]:
    """The fields of one event, without those that have no value."""
    fields: dict[str, object] = {
        "time": timestamp(seconds),
        "level": level.lower(),
        "logger": logger,
        "message": message,
        "service": SERVICE,
        "worker": os.getpid(),
        "request_id": peers.request_id.get(),
        "trace_id": peers.trace_id.get(),
    }
    given = {name: value for name, value in (fields | more).items() if value not in ("", "-", None)}
    return given | {"message": message}


def text_of(value: object) -> str:
    """The text of any object."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001  of an application's class
        return f"<{type(value).__name__}>"


def serialisable(value: object) -> object:
    """The value if JSON has it, otherwise its text."""
    try:
        json.dumps(value, allow_nan=False)
    except Exception:  # noqa: BLE001  a type that JSON has not, a circle, too deep
        return text_of(value)
    return value


def encode(fields: dict[str, Any]) -> str:
    """One line of ASCII, at most LONGEST characters: the longest values lose their second half.

    A traceback loses its first half.
    """
    line = json.dumps(fields)
    if "\\ud" in line:  # perhaps half of a surrogate pair, which some readers refuse
        line = json.dumps(json.loads(json.dumps(fields, ensure_ascii=False).encode(errors="replace")))
    while len(line) > LONGEST:
        fields = json.loads(line)
        name = max(fields, key=lambda name: len(json.dumps(fields[name])))
        value = fields[name] if isinstance(fields[name], str) else json.dumps(fields[name])
        half = len(value) // 2
        if half < 50:
            break
        fields[name] = f"...{value[half:]}" if name in ("exception", "stack") else f"{value[:half]}..."
        line = json.dumps(fields)
    return line


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
    client: str,
    method: str,
    path: str,
    query: str,
    status: object,
    size: object,
    seconds: float,
    route: str = "",
) -> None:
    """Write one request's line, in the format of logging.json; none for a probe.

    `size` is in bytes, `seconds` the duration, `route` the pattern that the path matches. The line
    does not go through the logging module, which would cost three times as much.
    """
    if not _ACCESS or path in health.PATHS:
        return
    now = time.time()
    if JSON:
        fields = event(
            now,
            "info",
            "serving.access",
            "handled request",
            client=client,
            method=method,
            route=route,
            path=path[:LONGEST],
            status=number(status),
            bytes=number(size),
            duration=round(seconds, 6),
        )
        line = encode(fields) + "\n"
    else:
        target = f"{path}?{without_values(query)}" if query else path
        if not target.isprintable() or '"' in target:
            # A client must not write lines or fields of its own into the log.
            target = target.encode("unicode_escape").decode().replace('"', "%22")
        line = (
            f"{timestamp(now)} INFO [{os.getpid()}] [{peers.request_id.get()}] "
            f'{client} "{method} {target}" {status} {size} {seconds * 1000:.0f}ms\n'
        )
    # One write, so that lines of several workers do not mix. A line that is lost fails no request.
    with suppress(OSError):
        os.write(_STDOUT, line.encode())


def number(value: object) -> int | None:
    """A status or a size as a number; None for "-"."""
    return int(str(value)) if re.fullmatch("[0-9]{1,18}", str(value)) else None


def log_uncaught(error: BaseException | None) -> None:
    """Log an exception that nothing has caught, where Python would print a traceback of many lines."""
    if not isinstance(error, SystemExit):  # of a thread, which ends silently
        logging.getLogger("serving").critical("uncaught exception", exc_info=error)


def log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """Log what Python would print in two lines."""
    logging.getLogger("py.warnings").warning("%s:%d: %s: %s", filename, lineno, category.__name__, message)


def configure() -> None:
    """Configure logging where no server does it: in a command of an application."""
    logging.config.dictConfig(json.loads(Path(__file__).with_name("logging.json").read_text()))


@contextmanager
def uncaught(code: int = 1) -> Iterator[None]:
    """With LOG_FORMAT=json, log an exception and end with this exit code, where others would print it."""
    try:
        yield
    except Exception as error:
        if not JSON:
            raise
        log_uncaught(error)
        sys.exit(code)


def log_everything() -> None:
    """Make records of what Python itself prints, also before logging is configured."""
    logging.lastResort = logging.StreamHandler()
    logging.lastResort.setLevel(logging.WARNING)
    logging.lastResort.setFormatter(JSONLine())
    warnings.showwarning = log_warning
    sys.excepthook = lambda _, error, __: log_uncaught(error)
    threading.excepthook = lambda caught: log_uncaught(caught.exc_value)
    sys.unraisablehook = lambda caught: log_uncaught(caught.exc_value)


if JSON:
    log_everything()
