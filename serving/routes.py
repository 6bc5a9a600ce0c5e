"""The route of a request: the pattern that the application matched, never the path that a client sent.

A route can be a label of a metric or a field of a log line, because an application has few of them.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

# The route of the request that this thread or task works on, where the application tells it; "" for none.
current: ContextVar[str] = ContextVar("route", default="")


def of_environ(environ: Mapping[str, Any]) -> str:
    """The route of a WSGI request whose response starts now; "" for none."""
    # Flask. When the call of the application has returned, the request is not there any more.
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return rule.rule if rule else current.get()


def of_scope(scope: Mapping[str, Any]) -> str:
    """The route of an ASGI request whose response has started; "" for none."""
    found = scope.get("route")
    # FastAPI: the route of an included router lacks the prefix, which its context has.
    found = with_prefix(scope.get("fastapi")) or found
    return getattr(found, "path_format", "") or current.get()


def with_prefix(fastapi: Any) -> Any:
    """What FastAPI has matched in an included router; None outside of one."""
    context = fastapi.get("effective_route_context") if isinstance(fastapi, dict) else None
    return getattr(context, "starlette_route", None) or context
