"""The part of a Dockerfile that the doctor needs: what each stage starts from and what it runs.

Not read: heredocs, ONBUILD, a SHELL of the Dockerfile's own, and what `COPY --from` brings along.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Stage:
    """One stage: its base image, its environment, and the last value of each other instruction."""

    base: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)

    def instruction(self, word: str) -> str:
        """What follows the last `word` in this stage or its parents; "" where there is none."""
        return self.instructions.get(word, "")

    @property
    def command(self) -> list[str]:
        """ENTRYPOINT and CMD together, as the engine runs them."""
        return command(self.instruction("ENTRYPOINT")) + command(self.instruction("CMD"))


class Dockerfile:
    """The stages by name, the external images that they start from, and the files that are copied."""

    def __init__(self, text: str) -> None:
        self.stages: dict[str, Stage] = {}
        # The base images of every stage, including the stages that only build.
        self.bases: list[str] = []
        self.copied: list[str] = []
        arguments: dict[str, str] = {}
        name = ""
        for word, rest in instructions(text):
            values = assignments(rest)
            if word == "FROM":
                image, *alias = re.sub(r"--\S+\s+", "", expand(rest, arguments)).split()
                if image not in self.stages:
                    self.bases.append(image)
                name = alias[-1] if alias else str(len(self.stages))
                self.stages[name] = self.stages.get(image, Stage(image))
            elif word == "ARG" and not name:
                arguments |= values
            elif word == "ENV" and name:
                stage = self.stages[name]
                self.stages[name] = replace(stage, environment={**stage.environment, **values})
            elif name:
                stage = self.stages[name]
                self.stages[name] = replace(stage, instructions={**stage.instructions, word: rest})
                if word == "COPY":
                    self.copied.append(rest)

    def stage(self, name: str) -> Stage:
        """The stage with this name, the last one for "", and an empty one where there is no such stage."""
        return self.stages.get(name or next(reversed(self.stages), ""), Stage())


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction in upper case with the rest of its line; continued lines are joined."""
    text = re.sub(r"^\s*#.*\n|\\[ \t]*\n(\s*#.*\n)*", "", text, flags=re.MULTILINE)
    found = re.findall(r"^[ \t]*([A-Za-z]+)[ \t]+(.*)$", text, re.MULTILINE)
    return [(word.upper(), rest.strip()) for word, rest in found]


def assignments(text: str) -> dict[str, str]:
    """The variables in `NAME=value OTHER="a b"`, or in the older form `NAME value`."""
    pairs = re.findall(r"""(\w+)=("[^"]*"|'[^']*'|\S*)""", text) or [text.partition(" ")[::2]]
    return {name: value.strip("\"'") for name, value in pairs}


def command(text: str) -> list[str]:
    """CMD or ENTRYPOINT as the engine runs it: a list as it is, anything else through a shell."""
    with suppress(ValueError):
        if text.startswith("["):
            return [str(word) for word in json.loads(text)]
    return ["sh", "-c", text] if text else []


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $NAME, ${NAME} and ${NAME:-default}; an unknown variable without default stays as it is."""

    def value(found: re.Match[str]) -> str:
        default = found[0] if found[3] is None else found[3]
        return values.get(found[1] or found[2]) or default

    return re.sub(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?\})", value, text)
