"""What the service contract leaves behind after each request."""

import weakref
from typing import Any

import pytest

from serving.wsgi import Service


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer."""
    start_response("200 OK", [])
    return [b"hello"]


@pytest.mark.parametrize("metrics", ["on", "off"])
def test_a_request_needs_no_garbage_collector(metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects refer to each other in no circle: freeing those would cost each request some time."""
    monkeypatch.setenv("METRICS", metrics)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "REMOTE_ADDR": "192.0.2.1"}
    body: Any = Service(app)(environ, lambda *_: None)
    assert [*body] == [b"hello"]
    body.close()
    reference = weakref.ref(body)
    del body
    assert reference() is None
