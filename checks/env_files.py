"""The lines of a .env file that Docker Compose and python-dotenv read differently.

Compose reads .env and .env.SERVICE for containers, python-dotenv reads them in process mode. A value
must mean the same in both. tests/unit/test_env_files.py compares this module with the two programs.
"""

import re
from collections.abc import Iterator
from pathlib import Path

ASSIGNMENT = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][\w.-]*)[ \t]*=(.*)", re.DOTALL)
# Both programs replace ${NAME} and ${NAME:-default}, unless single quotes surround it.
REPLACED_BY_BOTH = re.compile(r"(?<!\$)\$\{[A-Za-z_]\w*(:-[^${}]*)?\}")
REPLACED_BY_COMPOSE = re.compile(r"\$[A-Za-z_{$]")


def names(text: str) -> dict[str, int]:
    """The variables that the file sets, each with the number of its line."""
    found = ((number, ASSIGNMENT.match(line)) for number, line in logical_lines(text))
    return {match[1]: number for number, match in found if match}


def read_text(path: Path) -> str:
    """The file's text, with a byte order mark where it has one; "" where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def ambiguous_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """The number of each ambiguous line, the variable's name ("" for the line), and what must change.

    The value is not repeated, because it may be a secret.
    """
    if text.startswith("\ufeff"):
        yield 1, "", "must not begin with a byte order mark; change the file to UTF-8 without one"
    for number, line in logical_lines(text):
        match = ASSIGNMENT.fullmatch(line)
        if not match:
            yield number, "", "must be NAME=VALUE; change it to that form"
        elif problem := ambiguity(match[2]):
            yield number, match[1], problem.replace("NAME", match[1])


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Each line that is no comment, with its number; a quoted value may take several lines."""
    lines = text.removeprefix("\ufeff").splitlines()
    number = 0
    while number < len(lines):
        line, first = lines[number], number + 1
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        value = line.partition("=")[2].lstrip()
        if value[:1] in ("'", '"') and closing_quote(value) < 0:
            rest = "\n".join([value, *lines[number:]])
            if (end := closing_quote(rest)) > 0:
                more = rest.count("\n", 0, end)
                line = "\n".join([line, *lines[number : number + more]])
                number += more
        yield first, line


def closing_quote(value: str) -> int:
    """The index of the quote that ends the value which begins with one, or -1."""
    for match in re.finditer(r"\\.|['\"]", value[1:], re.DOTALL):
        if match[0] == value[0]:
            return match.start() + 1
    return -1


def ambiguity(raw: str) -> str:
    """What must change in the text behind NAME=; "" where both programs read the same value."""
    value = raw.strip()
    if value[:1] in ("'", '"'):
        return quoted_ambiguity(value)
    if re.match(r"[ \t]+#", raw) or re.search(r"[^\S ]#", value):
        return "must have no # after a blank; change it to NAME='...' in single quotes"
    return dollar_ambiguity(value.partition(" #")[0])


def quoted_ambiguity(value: str) -> str:
    """What must change in a value that begins with a quote."""
    end = closing_quote(value)
    if end < 0:
        return f"must end with {value[0]}; change it to NAME='...' in single quotes"
    rest = value[end + 1 :].strip()
    if rest and not rest.startswith("#"):
        return "must have nothing after the closing quote; change it to NAME='...' in single quotes"
    content = value[1:end]
    if value[0] == '"':
        return dollar_ambiguity(content)
    if re.search(r"\$\{[^}]*\}", content):
        return "must not contain ${...} in single quotes: process mode replaces it; change the value"
    if r"\\" in content:
        return (
            r"must not contain \\ in single quotes: process mode reads one \; change it to NAME=... without"
        )
    return ""


def dollar_ambiguity(value: str) -> str:
    """What must change where the value is not in single quotes."""
    if REPLACED_BY_COMPOSE.search(REPLACED_BY_BOTH.sub("", value)):
        return "must have no bare $: Compose replaces it; change it to NAME='...' in single quotes"
    return ""
