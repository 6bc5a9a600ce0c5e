"""`python -m asgi_app [OPTION ...]`: Uvicorn's own command line, with defaults from uvicorn.json.

Uvicorn has no configuration file. `uvicorn.json` in the working directory holds defaults for
its options, by their long names with underscores (https://www.uvicorn.org/settings/). What it
says is overruled by HOST, PORT, LOG_LEVEL and WEB_CONCURRENCY, those by UVICORN_<OPTION>
variables, and those by flags. JSON has no comments, so the reasons stand here:

| key | reason |
|---|---|
| `app` | so that `python -m asgi_app` needs no argument |
| `host` | loopback, until HOST asks for more; the image sets HOST=0.0.0.0 for itself |
| `port` | the same as Gunicorn's |
| `loop` | uvloop, or a failing start: `auto` falls back to the slower asyncio in silence |
| `http` | httptools likewise; it bounds no headers, so the proxy in front must |
| `ws` | closes all of 35 violations with the right code, `wsproto` one; 50,000 echoes a second to its 24,000, and 27 MiB for 1,000 idle connections to the 37 of `websockets`, which is deprecated |
| `ws_max_size` | bytes of one message, instead of 16 MiB; a longer one closes with 1009 |
| `ws_ping_interval` | seconds between pings; without them a vanished client is never noticed |
| `ws_ping_timeout` | seconds until a client that answers no ping is closed |
| `ws_per_message_deflate` | off: compression state is kept per connection, and a small message can unpack to a large one |
| `lifespan` | `auto` takes a startup that raises for an application without one, and serves |
| `log_config` | the same lines as Gunicorn's |
| `access_log` | off: `serving/asgi.py` writes the line, with request id and duration, at a fraction of the cost |
| `server_header` | nobody needs the server's name |
| `proxy_headers` | off: `serving/asgi.py` corrects the client's address, and it also removes a stranger's headers |
| `timeout_keep_alive` | seconds; must exceed the proxy's idle timeout for upstreams (nginx 60 s) |
| `timeout_graceful_shutdown` | seconds for requests in flight on SIGTERM; below Compose's `stop_grace_period`; unset waits for ever |
| `timeout_worker_healthcheck` | seconds until a worker with a blocked event loop is replaced (a single process ends itself), and in which a worker must boot on SIGHUP; 5 are too few for a large import |

`workers` is left out: it is computed from the container's limits, one per CPU. Add the key to
overrule that.
"""

import difflib
import functools
import importlib
import inspect
import json
import logging
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any

import click
import uvicorn

from asgi_app.supervisor import ObservedServer, Reloader, Supervisor, Worker
from serving import logs, settings, sizing

FILE = Path("uvicorn.json")

# What JSON may hold for an option that click converts; every other option takes a string.
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "integer": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "boolean": (bool, "true or false"),
}

# Click knows the types, but not these bounds.
BOUNDS = {"port": (0, 65535), "workers": (1, sizing.MAXIMUM)}


def defaults(path: Path = FILE) -> dict[str, Any]:
    """The options in the file, checked; {} when there is no file.

    Raises SettingError for what is no JSON object, an unknown key or a value of the wrong type.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise settings.SettingError(f"{path}: can not be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise settings.SettingError(f"{path}: must hold one JSON object, {{...}}")
    # --version is a command, not a setting.
    options = {option.name: option for option in uvicorn.main.params if option.name != "version"}
    for key, value in content.items():
        option = options.get(key)
        if option is None:
            near = difflib.get_close_matches(key, [name for name in options if name], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`python -m asgi_app --help` lists them"
            raise settings.SettingError(f"{path}: unknown key {key!r}; {hint}")
        check(f"{path}: {key}", option, value)
    return content


def check(name: str, option: click.Parameter, value: Any) -> None:
    """Raise SettingError unless `value` is of the option's JSON type and click accepts it."""
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
    least, most = BOUNDS.get(option.name or "", (None, None))
    if least is not None and not least <= value <= most:
        settings.refuse(name, value, f"a whole number from {least} to {most}")


def load(**options: Any) -> None:
    """Do what each worker does first; what fails here, in an application or an option, ends the process."""
    sys.path.insert(0, options["app_dir"] or ".")
    accepted = inspect.signature(uvicorn.Config).parameters
    headers = [header.split(":", 1) for header in options["headers"]]
    own = {"workers": 1, "reload": False, "headers": headers}
    uvicorn.Config(**{name: options[name] for name in options if name in accepted} | own).load()


def serve(size: sizing.Sizing, **options: Any) -> None:
    """Run Uvicorn with the options that the command line, environment and file came to."""
    # Uvicorn raises the signal again after draining; its default action would make the exit code 143.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    workers = options["workers"]
    if not 1 <= workers <= sizing.MAXIMUM:
        settings.refuse("--workers", workers, f"a whole number from 1 to {sizing.MAXIMUM}")
    # Made for its side effect, the log configuration.
    uvicorn.Config(
        options["app"], log_config=options["log_config"], log_level=options["log_level"], workers=1
    )
    reason = size.reason if workers == size.workers else "command line or UVICORN_WORKERS"
    logging.getLogger("uvicorn.error").info("workers=%d (%s)", workers, reason)
    # Under --reload the parent waits for an edit that can be imported.
    if workers > 1 and not options["reload"]:
        # In a process of its own, so that the parent keeps no copy of the application: a worker
        # that fails to import would otherwise be respawned for ever.
        trial = multiprocessing.get_context("spawn").Process(target=load, kwargs=options)
        trial.start()
        trial.join()
        if trial.exitcode:
            sys.exit(trial.exitcode)
    if not options["uds"] and options["fd"] is None:
        settings.require_free(options["host"], options["port"])
    uvicorn.main.callback(**options)  # type: ignore[misc]  # click types it as optional


def main() -> None:
    """The command line."""
    values = defaults()
    values["host"] = settings.text("HOST", values.get("host", "127.0.0.1"))
    values["port"] = settings.integer("PORT", values.get("port", 8000), minimum=0, maximum=65535)
    if settings.text("LOG_LEVEL"):
        values["log_level"] = settings.choice("LOG_LEVEL", logs.LEVELS, "info")
    size = sizing.workers(workload="asyncio", configured=values.get("workers"))
    values["workers"] = size.workers
    # Uvicorn takes no supervisor as an option.
    parts = {"ChangeReload": Reloader, "Multiprocess": Supervisor, "Server": ObservedServer}
    vars(importlib.import_module("uvicorn.main")).update(parts)
    vars(importlib.import_module("uvicorn.supervisors.multiprocess"))["Process"] = Worker
    command = click.Command(
        "asgi_app",
        params=uvicorn.main.params,
        callback=functools.partial(serve, size),
        context_settings=uvicorn.main.context_settings,
    )
    command.main(prog_name="python -m asgi_app", default_map=values)
