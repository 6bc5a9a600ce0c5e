"""The route of a Flask application that another one mounts."""

import contextvars

import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from serving import logs, routes
from serving.wsgi import Service


def item(number: int) -> str:
    """A page."""
    return str(number)


def site() -> Flask:
    """An application with one route."""
    app = Flask(__name__)
    app.get("/items/<int:number>")(item)
    return app


def around() -> DispatcherMiddleware:
    """One application below another one's paths."""
    return DispatcherMiddleware(site(), {"/api": site()})


def within() -> Flask:
    """The same as Flask's documentation does it."""
    app = site()
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/api": site()})
    return app


@pytest.mark.parametrize("application", [around, within])
def test_a_route_has_the_path_where_its_application_is_mounted(
    application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not the SCRIPT_NAME with which the request arrived."""
    monkeypatch.setattr(logs, "JSON", True)
    client = Client(Service(application()))
    for place, path, route in (
        ("", "/items/7", "/items/<int:number>"),
        ("", "/api/items/7", "/api/items/<int:number>"),
        ("/below", "/api/items/7", "/api/items/<int:number>"),
        ("", "/api/missing", ""),
    ):
        # The request's variables are not for the tests that follow.
        context = contextvars.copy_context()
        context.run(client.get, path, base_url=f"http://localhost{place}")
        assert context[routes.current] == route
