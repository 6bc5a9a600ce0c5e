"""What Django can only set for all requests, decided per request."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from serving import routes

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
