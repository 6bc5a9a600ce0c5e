"""Print the settings that Gunicorn arrives at in a container, as one line of JSON.

checks/servers.py runs this file in a process of its own, with the container's environment, in the
project's directory. Its argument is a JSON object: `words` (the command line) and `limits` (the fields
of serving.sizing.Limits, or null).
"""

import ast
import contextlib
import dataclasses
import io
import json
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> dict[str, Any]:
    """The settings and the source of each, or what is wrong."""
    # Gunicorn reads these variables while it is imported, and fails at a host name or a wrong number.
    withheld = {name: os.environ.pop(name, "") for name in ("FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY")}
    try:
        from gunicorn.config import Config
    except ImportError:
        return {"missing": "Gunicorn is not installed here"}
    os.environ.update({name: value for name, value in withheld.items() if value})
    config = Config()
    words = shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")) + request["words"]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            given = vars(config.parser().parse_known_args(words)[0])
    except SystemExit:
        return {"command_error": errors.getvalue().splitlines()[-1]}
    values = {name: option.get() for name, option in config.settings.items()}
    sources = dict.fromkeys(values, "default")
    if withheld["WEB_CONCURRENCY"]:
        values["workers"], sources["workers"] = withheld["WEB_CONCURRENCY"], "WEB_CONCURRENCY"
    path = configuration_file(str(given["config"] or "gunicorn.conf.py"))
    unknown: list[str] = []
    if path.exists():
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = run(path, words, request["limits"])
        except (Exception, SystemExit) as error:  # noqa: BLE001  a configuration may raise anything
            return {"file_error": str(error), "file": path.name}
        unknown = [name for name in unused_names(path.read_text(encoding="utf-8")) if name not in values]
        for name in found.keys() & values.keys():
            values[name], sources[name] = found[name], "file"
    for name, value in given.items():
        if value is not None and name in values:
            values[name], sources[name] = value, "command"
    values = {name: plain(value) for name, value in values.items()}
    return {"values": values, "sources": sources, "file": path.name, "unknown": unknown}


def unused_names(source: str) -> list[str]:
    """The names that a file assigns or defines and never reads: settings, or misspelled ones."""
    nodes = [*ast.walk(ast.parse(source))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    local = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
        for inner in ast.walk(node)
        if inner is not node
    }
    found = [node.id for node in names if isinstance(node.ctx, ast.Store) and id(node) not in local]
    found += [node.name for node in nodes if isinstance(node, ast.FunctionDef) and id(node) not in local]
    return [name for name in dict.fromkeys(found) if name not in read and not name.startswith("_")]


def configuration_file(name: str) -> Path:
    """The configuration in this directory, also for a path of the container."""
    path = Path(name.removeprefix("file:"))
    return path if path.exists() else Path(path.name)


def run(path: Path, words: list[str], limits: dict[str, Any] | None) -> dict[str, Any]:
    """The names that the configuration defines, under the container's limits."""
    sys.path.insert(0, str(Path.cwd()))
    sys.argv = ["gunicorn", *words]
    with contextlib.suppress(ImportError):
        from serving import sizing

        if limits:
            # The project's own copy may be of another version.
            known = {field.name for field in dataclasses.fields(sizing.Limits)}
            measured = sizing.Limits(**{name: limits[name] for name in limits.keys() & known})
            sizing.limits = lambda *_, **__: measured
    return runpy.run_path(str(path))


def plain(value: Any) -> Any:
    """The value as JSON can hold it: a class or a function by its full name."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
