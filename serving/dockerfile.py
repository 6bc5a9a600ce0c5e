"""As much of a Dockerfile as serving/doctor.py asks about: what each stage starts from, and what it runs."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


class Dockerfile:
    """The stages by name, each with the last value of every instruction; ENV is a dictionary."""

    def __init__(self, text: str) -> None:
        self.stages: dict[str, dict[str, Any]] = {}
        # Of every stage, also of those that only build.
        self.bases: list[str] = []
        self.copied: list[str] = []
        stage: dict[str, Any] = {}
        arguments: dict[str, str] = {}
        text = re.sub(r"^\s*#.*\n|\\[ \t]*\n(\s*#.*\n)*", "", text, flags=re.MULTILINE)
        for word, rest in re.findall(r"^[ \t]*([A-Za-z]+)[ \t]+(.*)$", text, re.MULTILINE):
            pairs = re.findall(r"""(\w+)=("[^"]*"|'[^']*'|\S*)""", rest) or [rest.partition(" ")[::2]]
            values = {name: value.strip("\"'") for name, value in pairs}
            match word.upper():
                case "FROM":
                    image, *name = re.sub(r"--\S+\s+", "", expand(rest, arguments)).split()
                    if image not in self.stages:
                        self.bases.append(image)
                    parent = self.stages.get(image, {"FROM": image, "ENV": {}})
                    stage = self.stages[name[-1] if name else str(len(self.stages))] = dict(parent)
                case "ARG" if not self.stages:
                    arguments |= values
                case "ENV" if stage:
                    stage["ENV"] = stage["ENV"] | values
                case key:
                    stage[key] = rest.strip()
                    self.copied += [rest] if key == "COPY" else []


def command(text: str) -> list[str]:
    """CMD or ENTRYPOINT as the engine runs it: a list as it is, anything else through a shell."""
    with suppress(ValueError):
        if text.startswith("["):
            return [str(word) for word in json.loads(text)]
    return ["sh", "-c", text] if text else []


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $NAME, ${NAME} and ${NAME:-default}; what nobody knows stays."""
    return re.sub(
        r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?\})",
        lambda found: values.get(found[1] or found[2]) or (found[0] if found[3] is None else found[3]),
        text,
    )
