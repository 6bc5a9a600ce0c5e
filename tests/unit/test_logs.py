"""Log lines: one time zone, no secrets of a query string, nothing that a client wrote."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from serving import logs
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


def test_the_configuration_names_classes_that_exist() -> None:
    """Gunicorn would answer a wrong name with a traceback."""
    text = (ROOT / "serving/logging.json").read_text()
    assert json.loads(text)["root"]["handlers"] == ["stdout"]
    for name in re.findall(r"serving\.logs\.(\w+)", text):
        assert hasattr(logs, name)
    assert Path(logs.__file__).exists()
