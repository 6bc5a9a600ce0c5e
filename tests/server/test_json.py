"""The services that speak JSON: documents come back, and every error is a problem document."""

import re
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.commands import poll
from tests.support.processes import JSON, PROGRAMS
from tests.support.servers import Server

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module", params=JSON)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each of the services, without a proxy before it."""
    with Server(*PROGRAMS[request.param], WEB_CONCURRENCY="1").wait() as running:
        yield running


def test_every_refusal_is_a_problem_document(server: Server, http: httpx2.Client) -> None:
    """RFC 9457 for each status that a client can provoke."""
    url = server.url
    json = {"content-type": "application/json"}
    long = b'"' + b"x" * MEBIBYTE + b'"'
    expected = {
        404: http.get(url + "/nothing"),
        405: http.put(url + "/echo"),
        400: http.post(url + "/echo", content=b"{", headers=json),
    }
    wrong_type = http.post(url + "/echo", content=b"[]", headers={"content-type": "text/plain"})
    assert wrong_type.status_code in (415, 422)
    expected[wrong_type.status_code] = wrong_type
    # On connections of their own: a body that was not read ends its connection. FastAPI answers a body
    # that announces its length in plain text.
    assert httpx2.post(url + "/echo", content=long, headers=json).status_code == 413
    in_chunks = httpx2.post(url + "/echo", content=iter([long]), headers=json)
    for status, answer in [*expected.items(), (413, in_chunks)]:
        assert (status, status) == (answer.status_code, answer.json()["status"])
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.content) < 1000
    assert "POST" in expected[405].headers["allow"]


def test_echo_returns_the_document(server: Server, http: httpx2.Client) -> None:
    """Any JSON value comes back as it was, up to the limit."""
    for value in ({"a": [1, None, "ü"]}, "text", [], "x" * (MEBIBYTE - 2)):
        assert {"echo": value} == http.post(server.url + "/echo", json=value).json()


@pytest.mark.parametrize("app", JSON)
def test_an_unforeseen_error_is_answered_without_a_trace_and_logged_with_it(app: str, tmp_path) -> None:
    """500 as a problem document; the log has the traceback, with the request's id."""
    package, inner, outer, server_module = JSON[app]
    (tmp_path / "broken.py").write_text(
        f"import {package} as site\n"
        f"@site.{inner}.get('/broken')\n"
        "def broken():\n    raise RuntimeError('secret detail')\n"
        f"app = site.{outer}\n"
    )
    with Server(server_module, "broken:app", PYTHONPATH=str(tmp_path)).wait() as server:
        answer = httpx2.get(server.url + "/broken")
        assert (answer.status_code, answer.json()["status"]) == (500, 500)
        assert "secret detail" not in answer.text
        # Logged after the answer was sent.
        poll(lambda: "RuntimeError: secret detail" in server.log(), log=server.log)
        assert re.search(rf"ERROR \[\d+\] \[{answer.headers['x-request-id']}\]", server.log()), server.log()
