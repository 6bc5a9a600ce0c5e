"""A stop finishes what was begun, in containers and as processes, by the same code."""

import re
import socket
import threading
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.commands import poll
from tests.support.processes import PROGRAMS, Stack

STOPPING = re.compile("Handling signal: term|Received SIGTERM|Shutting down")


def request_in_flight(url: str, path: str, kind: str, body: bytes, cookie: str = "") -> socket.socket:
    """A POST whose body the application already waits for: it has asked for it with a 100.

    Past any proxy, which passes no request on before it has all of the body.
    """
    address = urlsplit(url)
    client = socket.create_connection((address.hostname, address.port), timeout=30)
    client.sendall(
        f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {kind}\r\nCookie: {cookie}\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    assert client.recv(1000).startswith(b"HTTP/1.1 100"), "the server did not ask for the body"
    return client


def finish(client: socket.socket, body: bytes) -> bytes:
    """Send the body and read until the server closes."""
    client.sendall(body)
    answer = b""
    while chunk := client.recv(65536):
        answer += chunk
    return answer


def arguments(stack: Stack, service: str) -> tuple[str, str, bytes, str]:
    """Path, content type, body and cookie of a POST that the service accepts."""
    if service == "django":
        page = httpx2.get(stack.urls[service] + "/")
        return "/", "application/x-www-form-urlencoded", *guestbook_form(page)
    return "/echo", "application/json", b'{"sent": "slowly"}', ""


def guestbook_form(page: httpx2.Response) -> tuple[bytes, str]:
    """The guestbook's form with its token, and the cookie that goes with that."""
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token
    form = f"author=Slow&message=sent+slowly&csrfmiddlewaretoken={token[1]}"
    return form.encode(), f"csrftoken={page.cookies['csrftoken']}"


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_stop_finishes_the_request_in_flight_and_exits_0(stack: Stack, service: str) -> None:
    """A body that arrives only after the stop began is still answered; then the server is gone."""
    assert_stop_finishes(stack, service)


def test_a_stop_of_the_hybrid_finishes_the_request_in_flight(hybrid: Stack) -> None:
    """Gunicorn passes the stop on to Uvicorn's workers, with the same outcome."""
    assert_stop_finishes(hybrid, "fastapi")


def assert_stop_finishes(stack: Stack, service: str) -> None:
    """Begin a request, stop the service, end the request."""
    path, kind, body, cookie = arguments(stack, service)
    before = len(STOPPING.findall(stack.log(service)))
    codes: list[int] = []
    with request_in_flight(stack.direct(service), path, kind, body, cookie) as client:
        stop = threading.Thread(target=lambda: codes.append(stack.stop(service)))
        stop.start()
        try:
            poll(lambda: len(STOPPING.findall(stack.log(service))) > before, log=lambda: stack.log(service))
            answer = finish(client, body)
        finally:
            client.close()
            stop.join(40)
    try:
        assert answer.split()[1] in (b"200", b"302"), answer
        assert codes == [0], stack.log(service)
        assert "Traceback" not in stack.log(service)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(stack.direct(service) + "/livez")
    finally:
        stack.start(service)
    if service == "django":
        assert "sent slowly" in httpx2.get(stack.urls[service] + "/").text
