"""`python -m serving.uvicorn [OPTION ...]`: Uvicorn's own command line, with defaults from uvicorn.json.

Uvicorn has no configuration file. `uvicorn.json` in the working directory contains defaults for its
options, by their long names with underscores (https://www.uvicorn.org/settings/). HOST, PORT,
LOG_LEVEL, WEB_CONCURRENCY and REQUEST_TIMEOUT override the file, `UVICORN_<OPTION>` variables
override those, and flags override everything. docs/uvicorn.md gives the reason for each key.
"""

import copy
import difflib
import functools
import inspect
import json
import logging
import multiprocessing
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE

from serving import health, logs, metrics, settings, sizing
from serving.metrics import parent
from serving.uvicorn import supervisor

FILE = Path("uvicorn.json")

# The JSON type of an option that click converts; every other option takes a string.
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "integer": (int, "a whole number"),
    "integer range": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "boolean": (bool, "true or false"),
}

# Bounds that Uvicorn does not give to click.
BOUNDS = {"port": click.IntRange(0, 65535), "workers": click.IntRange(1, sizing.MAXIMUM)}


def command_options() -> list[click.Parameter]:
    """Uvicorn's command line options, with our bounds."""
    options = []
    for option in uvicorn.main.params:
        if option.name in BOUNDS:
            option = copy.copy(option)
            option.type = BOUNDS[option.name]
        options.append(option)
    return options


def defaults(path: Path = FILE) -> dict[str, Any]:
    """The options in the file, checked; {} when there is no file.

    Raises SettingError for anything but a JSON object, an unknown key or a value of the wrong type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise settings.SettingError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise settings.SettingError(f"{path}: must contain one JSON object, {{...}}")
    # --version is a command, not a setting.
    options = {option.name: option for option in command_options() if option.name != "version"}
    for key, value in content.items():
        option = options.get(key)
        if option is None:
            near = difflib.get_close_matches(key, [name for name in options if name], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`python -m serving.uvicorn --help` lists them"
            raise settings.SettingError(f"{path}: unknown key {key!r}; {hint}")
        check(f"{path}: {key}", option, value)
    return content


def check(name: str, option: click.Parameter, value: Any) -> None:
    """Raise SettingError unless `value` has the option's JSON type and click accepts it."""
    kind, allowed = TYPES.get(option.type.name, (str, "a string"))
    values = value if getattr(option, "multiple", False) else [value]
    if not isinstance(values, list):
        settings.refuse(name, value, "a list of strings")
    for item in values:
        # bool is a kind of int in Python, not in JSON.
        if not isinstance(item, kind) or (isinstance(item, bool) and kind is not bool):
            settings.refuse(name, item, allowed)
        try:
            option.type.convert(item, option, None)
        except click.ClickException as error:
            raise settings.SettingError(f"{name}={item!r}: {error.message}") from error
    if option.name == "headers":
        split_headers(value, name)


def with_environment(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the variables that override the file, for this server and for Gunicorn's worker."""
    found = dict(values)
    if settings.text("REQUEST_TIMEOUT"):
        found["timeout_graceful_shutdown"] = settings.request_timeout()
    return found


def split_headers(headers: list[str], name: str = "--header") -> list[tuple[str, str]]:
    """Uvicorn's `NAME:VALUE` headers as pairs. Raises SettingError for one without a colon."""
    pairs = []
    for header in headers:
        key, colon, value = header.partition(":")
        if not colon:
            settings.refuse(name, header, "NAME:VALUE")
        pairs.append((key, value))
    return pairs


def config_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line as arguments of uvicorn.Config, as uvicorn.main translates them."""
    accepted = inspect.signature(uvicorn.Config).parameters
    found = {name: value for name, value in options.items() if name in accepted}
    if "headers" in found:
        found["headers"] = split_headers(found["headers"])
    for name in ("reload_dirs", "reload_includes", "reload_excludes"):
        if name in found:
            found[name] = found[name] or None
    if "log_config" in found and found["log_config"] is None:
        found["log_config"] = LOGGING_CONFIG
    return found


def load(options: Mapping[str, Any]) -> None:
    """Load the application as each worker does first; a failure ends the process."""
    sys.path.insert(0, options["app_dir"] or ".")
    with logs.uncaught():
        uvicorn.Config(**config_options(options) | {"workers": 1, "reload": False}).load()


def require_loadable(options: Mapping[str, Any]) -> None:
    """End unless a process can load the application: a worker that cannot would be started forever.

    In a process of its own, so that the parent process does not contain a copy of the application.
    """
    trial = multiprocessing.get_context("spawn").Process(target=load, args=[options])
    trial.start()
    try:
        trial.join()
    finally:
        trial.kill()
    if trial.exitcode:
        sys.exit(trial.exitcode)


def prepare_signals() -> None:
    """Let every signal that stops the server do so gracefully and with exit code 0.

    Uvicorn replaces the handlers of SIGTERM and SIGINT while it serves, and raises the signal again
    afterwards: without a handler the exit code would be 143.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # The parent process of two or more workers replaces these. A single process cannot start itself
    # again: it stops, and the engine or supervisor starts it.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.signal(signal.SIGQUIT, lambda *_: signal.raise_signal(signal.SIGINT))


def serve(size: sizing.Sizing, **options: Any) -> None:
    """Run Uvicorn with the final options; the choice between three ways is that of `uvicorn.run`."""
    prepare_signals()
    sys.path.insert(0, options["app_dir"] or "")
    # This also configures logging.
    config = uvicorn.Config(**config_options(options))
    workers = config.workers
    sizing.check("--workers", workers, sizing.SERVING_THREADS["asyncio"], sizing.limits())
    reason = size.reason if workers == size.workers else "command line or UVICORN_WORKERS"
    logging.getLogger("uvicorn.error").info("workers=%d (%s)", workers, reason)
    exporting: parent.Parent | None = None
    by_address = config.uds is None and config.fd is None
    if by_address:
        settings.require_free(config.host, config.port)
    with suppress(KeyboardInterrupt):
        try:
            if config.should_reload:
                if metrics.enabled():
                    logging.getLogger("uvicorn.error").warning("METRICS=on: none under --reload")
                target = supervisor.ObservedServer(config).run
                supervisor.StatReloader(config, target, [config.bind_socket()]).run()
            elif workers > 1:
                require_loadable(options)
                exporting = parent.start()
                sockets = [config.bind_socket()]
                if exporting:
                    exporting.start_exporter(sockets)
                supervisor.Supervisor(config, sockets, exporting).run()
            else:
                exporting = parent.start(own_slot="0")
                config.load_app()
                server = supervisor.ObservedServer(config, exporting)
                # A socket that the event loop makes for HOST=:: would refuse IPv4.
                own = [config.bind_socket()] if by_address else None
                if exporting:
                    exporting.start_exporter(own or [])
                server.run(own)
                if not server.started:
                    sys.exit(STARTUP_FAILURE)
        finally:
            if config.uds:
                Path(config.uds).unlink(missing_ok=True)


def main() -> None:
    """The command line."""
    supervisor.require_supported_uvicorn()
    health.drain_seconds()  # a wrong value stops the start, not the stop
    values = with_environment(defaults())
    # A platform that sets PORT without HOST connects from outside the machine.
    host = "0.0.0.0" if settings.text("PORT") else values.get("host", "127.0.0.1")  # noqa: S104
    values["host"] = settings.text("HOST", host)
    values["port"] = settings.integer("PORT", values.get("port", 8000), minimum=0, maximum=65535)
    if settings.text("LOG_LEVEL"):
        values["log_level"] = settings.choice("LOG_LEVEL", logs.LEVELS, "info")
    size = sizing.workers(workload="asyncio", configured=values.get("workers"))
    values["workers"] = size.workers
    command = click.Command(
        "serving.uvicorn",
        params=command_options(),
        callback=functools.partial(serve, size),
        context_settings=uvicorn.main.context_settings,
    )
    command.main(prog_name="python -m serving.uvicorn", default_map=values)
