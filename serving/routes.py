"""The route of a request: the pattern that the application matched, never the path that a client sent.

A route can be a label of a metric or a field of a log line, because an application has few of them.
"""

from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

# The route of the request that this thread or task works on, where the application tells it; "" for none.
current: ContextVar[str] = ContextVar("route", default="")


def mounts(application: Any, below: str = "") -> Iterator[str]:
    """The paths where an application has mounted others.

    Without those that have a parameter: a client chooses its value.
    """
    # Werkzeug's DispatcherMiddleware, around the application or as its `wsgi_app`.
    for dispatcher in (application, getattr(application, "wsgi_app", None)):
        yield from getattr(dispatcher, "mounts", ())
    # Starlette: of all routes, only a mounted application has routes itself.
    for route in getattr(application, "routes", ()):
        path = below + getattr(route, "path", "")
        if hasattr(route, "routes") and "{" not in path:
            yield path
            yield from mounts(route, path)


def mounted(known: Collection[str], before: str, now: str) -> str:
    """The path of the mounted application that answers; `before` and `now` are SCRIPT_NAME or root_path."""
    path = now[len(before) :]
    return path if path in known else ""


def of_environ(environ: Mapping[str, Any], known: Collection[str] = (), script: str = "") -> str:
    """The route of a WSGI request whose response starts now; "" for none.

    `script` is the SCRIPT_NAME with which it arrived.
    """
    # Flask. When the call of the application has returned, the request is not there any more.
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    route: str = rule.rule if rule else current.get()
    return route and mounted(known, script, environ.get("SCRIPT_NAME", "")) + route


def of_scope(scope: Mapping[str, Any], known: Collection[str] = ()) -> str:
    """The route of an ASGI request whose response has started; "" for none."""
    found = scope.get("route")
    # FastAPI: the route of an included router lacks the prefix, which its context has.
    found = with_prefix(scope.get("fastapi")) or found
    route = getattr(found, "path_format", "") or current.get()
    if not route or hasattr(found, "routes"):  # the mounted application itself
        return route
    # Starlette adds the first key to what a mounted application sees.
    root = scope.get("root_path", "")
    return mounted(known, scope.get("app_root_path", root), root) + route


def with_prefix(fastapi: Any) -> Any:
    """What FastAPI has matched in an included router; None outside of one."""
    context = fastapi.get("effective_route_context") if isinstance(fastapi, dict) else None
    return getattr(context, "starlette_route", None) or context
