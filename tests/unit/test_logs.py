"""Log lines: one time zone, no secrets of a query string, nothing that a client wrote."""

import json
import logging
import os
import re
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

from serving import logs, peers
from tests.support.commands import ROOT, run

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00"


@pytest.mark.parametrize(
    ("query", "logged"),
    [
        ("token=hunter2", "token=*"),
        ("token=hunter2&page=2", "token=*&page=*"),
        ("hunter2", "*"),
        ("=hunter2", "*"),
        ("a&b=", "*&b=*"),
        ("token=a=b", "token=*"),
    ],
)
def test_a_query_string_is_logged_without_values(query: str, logged: str) -> None:
    """Names stay, because they say what was asked for."""
    assert logs.without_values(query) == logged


def test_a_message_of_the_server_is_logged_without_queries() -> None:
    """Gunicorn repeats the request line of an invalid request."""
    message = "Invalid Request Line 'GET /x?token=hunter2 HTTP/9.9'"
    assert logs.without_queries(message) == "Invalid Request Line 'GET /x?* HTTP/9.9'"


def test_an_access_line_has_the_format_of_every_other_line(capfd: pytest.CaptureFixture[str]) -> None:
    """UTC with milliseconds and offset, level, process, request id."""
    logs.access("127.0.0.1", "GET", '/a"\n', "token=hunter2", 200, 5, 0.0015)
    line = capfd.readouterr().out
    expected = rf'{TIME} INFO \[{os.getpid()}\] \[-\] 127\.0\.0\.1 "GET /a%22\\n\?token=\*" 200 5 2ms\n'
    assert re.fullmatch(expected, line), line


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/St_Johns", ""])
def test_every_line_is_utc(zone: str) -> None:
    """Whatever TZ says, and whatever an application does with it."""
    program = (
        "import json, logging.config, time\n"
        "from serving import logs\n"
        "logging.config.dictConfig(json.load(open('serving/logging.json')))\n"
        "logging.getLogger('any').info('first')\n"
        "logs.access('a', 'GET', '/second', '', 200, 1, 0)\n"
        "print(time.time())"
    )
    first, second, now = run(sys.executable, "-c", program, env=os.environ | {"TZ": zone}).splitlines()
    for line in (first, second):
        assert re.match(rf"{TIME} INFO ", line), line
        assert abs(int(line[11:13]) - int(float(now)) // 3600 % 24) in (0, 1, 23)


def test_a_brief_handler_writes_one_line_at_warning() -> None:
    """For errors that any client can cause: no traceback, no second line, no more than 500 characters."""
    program = (
        "import json, logging.config\n"
        "logging.config.dictConfig(json.load(open('serving/logging.json')) | {'loggers': {\n"
        "    'strangers': {'handlers': ['brief'], 'propagate': False}}})\n"
        "try:\n    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    logging.getLogger('strangers.host').exception('no %s', 'a\\nb' * 1000)\n"
    )
    (line,) = run(sys.executable, "-c", program).splitlines()
    assert re.match(rf"{TIME} WARNING \[\d+\] \[-\] strangers\.host: no a\\nba", line), line
    assert len(line) < 620


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{'0af7' * 8}-b7ad6b7169203331-01", "0af7" * 8),
        (f"cc-{'f' * 32}-b7ad6b7169203331-00", "f" * 32),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", ""),
        (f"00-{'0AF7' * 8}-b7ad6b7169203331-01", ""),
        (f"00-{'0af7' * 8}-b7ad6b7169203331", ""),
        (f"00-{'0af7' * 8}-b7ad6b7169203331-01\n", ""),
        (f"00-{'0af7' * 8}-b7ad6b7169203331-01," * 2, ""),
        ("", ""),
        (None, ""),
    ],
)
def test_only_a_well_formed_trace_counts(traceparent: str | None, trace: str) -> None:
    """32 hexadecimal digits that are not all zero, in the header that W3C Trace Context describes."""
    assert peers.trace_id_for(traceparent) == trace


def event(message: object = "text", **extra: object) -> dict:
    """What a record is as JSON."""
    record = logging.LogRecord("any", logging.INFO, "file", 1, message, (), None)
    vars(record).update(extra)
    line = logs.JSONLine().format(record)
    assert line.isprintable()
    assert len(line) < 16 * 1024
    return json.loads(line)


def test_a_record_is_one_object() -> None:
    """With the same fields in the same order; without a request, there is no id."""
    assert list(event()) == ["time", "level", "logger", "message", "worker"]
    assert re.fullmatch(TIME, event()["time"])


def test_an_extra_replaces_no_field() -> None:
    """It is added, unless it would be a colour, or the text of a request with its query."""
    extra = {
        "level": "a",
        "time": "b",
        "request_id": "d",
        "color_message": "e",
        "request": "f",
    }
    assert event(**extra, order=7) == event() | {"time": ANY, "order": 7}


@pytest.mark.parametrize(
    "message", ["x" * 10**6, "\x00" * 10**6, "é\u2028\udc80\n" * 10**5, "\U0001f600" * 10**5]
)
def test_a_long_message_is_cut(message: str) -> None:
    """So that a line stays one line for the engine, whatever its characters need as JSON."""
    assert event(message)["message"].startswith(message[:100].replace("\udc80", "?"))
    assert len(event("short", dump=[message])) == 6


def test_the_end_of_a_long_traceback_stays() -> None:
    """It names the exception."""
    try:
        {}["x" * 40_000 + "the end"]
    except KeyError:
        assert event(exc_info=sys.exc_info())["exception"].endswith("the end'")


@pytest.mark.parametrize(
    "value",
    [{1}, float("inf"), object(), {"a": {(1, 2): 3}}, b"\xff"],
    ids=["set", "infinity", "object", "tuple as a key", "bytes"],
)
def test_a_value_that_json_has_not_becomes_text(value: object) -> None:
    """Instead of an exception, or of a word that is no JSON."""
    assert event(value=value)["value"] == str(value)


def test_the_configuration_names_classes_that_exist() -> None:
    """Gunicorn would answer a wrong name with a traceback."""
    text = (ROOT / "serving/logging.json").read_text()
    assert json.loads(text)["root"]["handlers"] == ["stdout"]
    for name in re.findall(r"serving\.logs\.(\w+)", text):
        assert hasattr(logs, name)
    assert Path(logs.__file__).exists()
