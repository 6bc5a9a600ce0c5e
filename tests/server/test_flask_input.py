"""Flask: a body that is longer than MAX_BODY is refused, however it is sent."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.servers import Server

LIMIT = 4096


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One worker with a small limit."""
    with Server("serving.gunicorn", "--workers", "1", "wsgi_app.flask_site", MAX_BODY="4KiB") as server:
        yield server.wait()


def post(server: Server, size: int, chunked: bool) -> httpx2.Response:
    """A JSON document of so many bytes, padded with blanks that a parser ignores."""
    document = json.dumps({"a": 1}).encode().ljust(size)
    content = iter([document[:100], document[100:]]) if chunked else document
    headers = {"Content-Type": "application/json"}
    return httpx2.post(server.url + "/echo", content=content, headers=headers, trust_env=False)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_within_the_limit_is_read(server: Server, chunked: bool) -> None:
    """MAX_BODY is Flask's limit too."""
    assert post(server, LIMIT - 1, chunked).json() == {"echo": {"a": 1}}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 1000, 3 * LIMIT])
def test_a_longer_body_is_refused(server: Server, size: int, chunked: bool) -> None:
    """Cut off, it would still be a whole document, and be answered as if it were complete."""
    answer = post(server, size, chunked)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
