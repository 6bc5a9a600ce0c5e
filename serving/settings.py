"""Settings from the environment; a wrong value stops the start with one line.

An empty variable counts as unset, because Compose passes `NAME=` for a bare `NAME:`.
"""

# For checks/variables.py, which the Python of the machine runs: 3.9 is enough.
from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, overload


class SettingError(SystemExit):
    """A setting that cannot be used; the message names it, its value and what is allowed.

    A `SystemExit`, so that Python prints the message without a traceback and exits with code 1.
    """


def refuse(name: str, value: object, allowed: str) -> NoReturn:
    """Raise the SettingError for `name`; `allowed` completes "must be ..."."""
    raise SettingError(f"{name}={value!r}: must be {allowed}")


def text(name: str, default: str = "") -> str:
    """The variable's value without surrounding blanks, or `default`."""
    return os.environ.get(name, "").strip() or default


@overload
def integer(name: str, default: int, *, minimum: int, maximum: int) -> int: ...
@overload
def integer(name: str, default: None, *, minimum: int, maximum: int) -> int | None: ...


def integer(name: str, default: int | None, *, minimum: int, maximum: int) -> int | None:
    """A whole number from `minimum` to `maximum`, or `default`.

    Raises SettingError for anything else.
    """
    value = text(name)
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and minimum <= int(value) <= maximum):
        refuse(name, value, f"a whole number from {minimum} to {maximum}")
    return int(value)


def size(name: str, default: int) -> int:
    """A number of bytes such as 1048576, 512KiB, 1MiB or 2GiB, or `default`.

    Raises SettingError for anything else, and for no bytes at all.
    """
    value = text(name)
    if not value:
        return default
    units = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    found = re.fullmatch(r"([0-9]{1,12})(KiB|MiB|GiB|)", value)
    count = int(found[1]) * units[found[2]] if found else 0
    if not 0 < count <= 2**40:
        refuse(name, value, "a whole number of bytes, or of KiB, MiB or GiB, such as 1MiB; at most 1024GiB")
    return count


def request_timeout() -> int:
    """REQUEST_TIMEOUT: the seconds within which a response must begin."""
    return integer("REQUEST_TIMEOUT", 20, minimum=1, maximum=3600)


def drain_seconds() -> int:
    """DRAIN_SECONDS: how long a server goes on serving after SIGTERM, unready, before it stops."""
    return integer("DRAIN_SECONDS", 0, minimum=0, maximum=300)


def choice(name: str, options: Sequence[str], default: str) -> str:
    """One of `options` in lower case, or `default`. Raises SettingError for any other word."""
    value = text(name, default).lower()
    if value not in options:
        refuse(name, value, f"one of {', '.join(options)}")
    return value


def flag(name: str, default: bool = False) -> bool:
    """True for 1, true, yes, on; False for 0, false, no, off; `default` when unset."""
    words = ("1", "true", "yes", "on", "0", "false", "no", "off")
    return words.index(choice(name, words, "on" if default else "off")) < 4


def words(name: str, default: str) -> list[str]:
    """The comma-separated values of the variable, or of `default`."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def origins(name: str, *, subdomains: bool = False) -> list[str]:
    """The comma-separated origins of the variable as browsers send them; [] when unset.

    In lower case, without a path and without the default port. With `subdomains`, a host may begin
    with "*.". Raises SettingError for anything that is not an origin.
    """
    found = []
    host = r"(?:\*\.)?[^/?#@*\s]+?" if subdomains else r"[^/?#@*\s]+?"
    for word in words(name, ""):
        parts = re.fullmatch(rf"(https?)://({host})(:[0-9]+)?/?", word.lower())
        if not parts:
            refuse(name, word, "origins such as https://app.example.com, separated by commas")
        port = "" if parts[3] == {"http": ":80", "https": ":443"}[parts[1]] else parts[3] or ""
        found.append(f"{parts[1]}://{parts[2]}{port}")
    return found


def secret(name: str) -> str:
    """The variable's value, or the content of the file named by NAME_FILE, or "".

    Raises SettingError when both are set, or when the file cannot be read or is empty.
    """
    value, path = text(name), text(f"{name}_FILE")
    if value and path:
        refuse(f"{name}_FILE", path, f"unset while {name} is set: only one of the two counts")
    if not path:
        return value
    try:
        value = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        refuse(f"{name}_FILE", path, f"a file that this user can read ({reason})")
    if not value:
        refuse(f"{name}_FILE", path, "a file with the secret in it; it is empty")
    return value


def unset_empty(*names: str) -> None:
    """Remove those of the variables that are empty, for a library that would read them."""
    for name in names:
        if not text(name):
            os.environ.pop(name, None)


def require_free(host: str, port: int) -> None:
    """Raise SettingError unless a server can listen on `host`:`port` now.

    Gunicorn itself would retry for five seconds and then stop without naming the setting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # The servers do the same: an address in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            refuse("HOST", host, f"an address of this machine, such as 127.0.0.1 ({error.strerror})")
        except OSError as error:
            refuse("HOST and PORT", f"{host}:{port}", f"free to listen on ({error.strerror})")
        except OverflowError:
            refuse("PORT", port, "a whole number from 0 to 65535")
