"""The part of a Caddyfile that the doctor compares: directives with their values and places.

`{$VARIABLE}` and `{$VARIABLE:default}` are replaced as Caddy does. Snippets and imports are not expanded:
a directive is found where it is written. Not read: heredocs, and values such as {args[0]}.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`|\S+')
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


@dataclass(frozen=True)
class Directive:
    """One directive: its file and line, the blocks around it, and its words."""

    file: str
    line: int
    blocks: tuple[str, ...]
    name: str
    values: tuple[str, ...]

    @property
    def value(self) -> str:
        """The first value, or ""."""
        return self.values[0] if self.values else ""

    @property
    def seconds(self) -> float | None:
        """The value as a duration, or None."""
        return duration(self.value)

    @property
    def bytes(self) -> int | None:
        """The value as a size, or None."""
        return size(self.value)

    def __str__(self) -> str:
        """`file:line: name=value`."""
        return f"{self.file}:{self.line}: {self.name}={' '.join(self.values)}"


class Caddyfile:
    """Every directive of the edge's files."""

    def __init__(self, directives: list[Directive], unset: dict[str, str]) -> None:
        self.directives = directives
        # The variables that have neither a value nor a default, each with its first place.
        self.unset = unset

    @classmethod
    def read(cls, directory: Path, files: list[Path], environment: Mapping[str, str]) -> "Caddyfile":
        """The directives of these files, with the variables of the edge's container."""
        found: list[Directive] = []
        unset: dict[str, str] = {}
        for file in files:
            name, text = file.relative_to(directory).as_posix(), file.read_text(encoding="utf-8")
            found += parse(name, text, environment)
            for number, line in enumerate(text.splitlines(), 1):
                for variable in re.findall(r"\{\$(\w+)\}", without_comment(line)):
                    if variable not in environment:
                        unset.setdefault(variable, f"{name}:{number}")
        return cls(found, unset)

    def named(self, name: str, block: str = "") -> list[Directive]:
        """The directives with this name, those in the block `block` if one is given."""
        return [it for it in self.directives if it.name == name and (not block or block in it.blocks)]


def parse(file: str, text: str, environment: Mapping[str, str]) -> Iterator[Directive]:
    """The directives of one file."""
    blocks: list[str] = []
    for number, line in enumerate(substitute(text, environment).splitlines(), 1):
        words = TOKEN.findall(without_comment(line))
        opens = bool(words) and words[-1] == "{"
        words = words[:-1] if opens else words
        if words == ["}"]:
            del blocks[-1:]
            continue
        if words:
            yield Directive(
                file, number, tuple(blocks), words[0], tuple(word.strip('"`') for word in words[1:])
            )
        if opens:
            blocks.append(words[0] if words else "")


def without_comment(line: str) -> str:
    """The line without a comment: a # counts at the beginning of a word only."""
    return re.sub(r"(^|\s)#.*", "", line) if not re.search(r'["`]', line) else line


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """Replace {$VARIABLE} and {$VARIABLE:default}; an unset variable without default becomes empty."""
    return re.sub(
        r"\{\$(\w+)(?::([^}]*))?\}", lambda found: environment.get(found[1]) or found[2] or "", text
    )


def duration(text: str) -> float | None:
    """Seconds of a duration in Go's form, such as 1m30s, whose parts are added; None for anything else."""
    parts = re.findall(r"([\d.]+)(ns|us|µs|ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def size(text: str) -> int | None:
    """Bytes of a size such as 1MiB, 10MB or 1048576; None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?|)b?", text.lower())
    return int(float(found[1]) * BYTES[found[2]]) if found else None
