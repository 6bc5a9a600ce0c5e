"""What Django can only set for all requests, decided per request."""

import logging
from collections.abc import Callable

from django.db import OperationalError
from django.http import HttpRequest, HttpResponse

from serving import routes
from wsgi_app.django_site import views
from wsgi_app.django_site.postgresql import limits

logger = logging.getLogger(__name__)
Handler = Callable[[HttpRequest], HttpResponse]


def secure_cookies(get_response: Handler) -> Handler:
    """A cookie that was set over TLS never travels without it, though a plain port serves as well."""

    def handle(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.is_secure():
            for cookie in response.cookies.values():
                cookie["secure"] = True
        return response

    return handle


def name_route(get_response: Handler) -> Handler:
    """Tell metrics and logs which route has matched; they cannot see it from outside."""

    def handle(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if request.resolver_match:
            routes.current.set(f"/{request.resolver_match.route}")
        return response

    return handle


def database_away(get_response: Handler) -> Handler:
    """Answer 503 without a traceback where PostgreSQL is away: each request would log the same one."""

    def handle(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    def process_exception(request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, OperationalError) or not isinstance(
            exception.__cause__, limits.AwayError
        ):
            return None
        logger.warning("the database is away: %s", " ".join(str(exception).split()))
        return views.unavailable()

    handle.process_exception = process_exception
    return handle
