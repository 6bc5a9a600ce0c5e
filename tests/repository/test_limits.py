"""Every limit holds where it is said to be: what is just under it succeeds, what is just over it does not."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.support.commands import ROOT, poll, run
from tests.support.containers import Containers

MEBIBYTE = 1024 * 1024
EDGE_FILES = [ROOT / "deploy/edge/Caddyfile", *sorted((ROOT / "deploy/edge").rglob("*.caddy"))]
ROWS = re.findall(r"\]\(\.\./(\S+)\): `(.+?)` \|", (ROOT / "docs/limits.md").read_text())
# Ready at once, and as slow as the address says.
SLOW = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if not self.path.startswith("/readyz"):
            time.sleep(float(self.path.rpartition("-")[2]))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def both(containers: Containers, request: str, under: dict, over: dict) -> dict[str, tuple[int, int]]:
    """The status of two requests, by service."""
    method, path = request.split()
    with httpx2.Client(trust_env=False, timeout=30) as client:
        return {
            service: tuple(
                client.request(method, url + path, **options).status_code for options in (under, over)
            )
            for service, url in containers.urls.items()
        }


@pytest.mark.parametrize(("file", "setting"), ROWS, ids=" ".join)
def test_the_table_says_what_the_files_set(file: str, setting: str) -> None:
    """The words that docs/limits.md quotes stand in the file that it names."""
    assert setting in (ROOT / file).read_text()


def test_the_table_is_complete() -> None:
    """Each size and duration of the edge that a client can notice has its row."""
    text = "\n".join(path.read_text() for path in EDGE_FILES)
    limits = re.findall(r"^\t+(\w+ [\d.]+(?:KiB|MiB|s|m))$", text, re.MULTILINE)
    inner = r"keepalive|dial_|health_|refresh"
    assert len(limits) > 3
    assert [limit for limit in limits if not re.match(inner, limit)] == [
        setting for limit in limits for file, setting in ROWS if setting == limit
    ]


def test_the_image_has_the_version_of_caddy_that_was_checked(containers: Containers) -> None:
    """The Caddyfile names it, and other comments and docs/limits.md name the same minor release."""
    (version,) = re.findall(r"^v?(\d+\.\d+\.\d+)\b", containers.exec("edge", "caddy", "version"))
    texts = [path.read_text() for path in (*EDGE_FILES, ROOT / "docs/limits.md")]
    named = set(re.findall(r"\bCaddy (\d+\.\d+(?:\.\d+)?)\b", "\n".join(texts)))
    assert named == {version, version.rpartition(".")[0]}


def test_gunicorn_limits_the_request_line(containers: Containers) -> None:
    """4094 bytes, the query included; Uvicorn and the edge limit the headers as a whole only."""
    under, over = ({"params": {"q": "a" * length}} for length in (4000, 4100))
    for service, statuses in both(containers, "GET /", under, over).items():
        is_gunicorn = "gunicorn" in containers.inspect(service, "{{.Config.Cmd}}")
        assert statuses == (200, 414 if is_gunicorn else 200), service


def test_headers_have_12_kib(containers: Containers) -> None:
    """One of them may take nearly all of it."""
    under, over = ({"headers": {"X-Long": "a" * length}} for length in (11_900, 16_400))
    assert set(both(containers, "GET /", under, over).values()) == {(200, 431)}


def test_gunicorn_takes_100_headers(containers: Containers) -> None:
    """The edge adds a few; under Uvicorn their size alone counts."""
    under, over = ({"headers": {f"X-{number}": "a" for number in range(count)}} for count in (85, 101))
    for service, statuses in both(containers, "GET /", under, over).items():
        bounded = "gunicorn" in containers.inspect(service, "{{.Config.Cmd}}")
        assert statuses == (200, 431 if bounded else 200), service


def test_a_body_has_one_mebibyte(containers: Containers) -> None:
    """Announced or in chunks."""
    headers = {"content-type": "application/json"}

    def parts(length: int) -> dict:
        return {"headers": headers, "content": iter([b'"', b"a" * (length - 2), b'"'])}

    def whole(length: int) -> dict:
        return {"headers": headers, "content": b"".join(parts(length)["content"])}

    for options in (whole, parts):
        for service, url in containers.urls.items():
            found = [
                httpx2.post(url + "/echo", **options(length), trust_env=False, timeout=30).status_code
                for length in (MEBIBYTE, MEBIBYTE + 1)
            ]
            # Django has no such page, and answers before it has read the chunks.
            # Django does not read the body of a page that it does not have, and may answer first.
            refused = (404, 413) if service == "django" else (413,)
            assert found[0] == (404 if service == "django" else 200), (service, options)
            assert found[1] in refused, (service, options)


def test_an_answer_begins_within_20_seconds(containers: Containers) -> None:
    """Or the client gets 504; the request is not tried again elsewhere."""
    service, url = next(iter(containers.urls.items()))
    name = f"{containers.project}-{service}-4"

    def status(path: str) -> int:
        return httpx2.get(url + path, trust_env=False, timeout=40).status_code

    containers.neighbour(name, "python", "-c", SLOW)
    try:
        # The other replica does not know these addresses.
        with ThreadPoolExecutor() as pool:
            slow = [
                pool.submit(poll, lambda path=path: (found := status(path)) != 404 and found, 60)
                for path in ("/wait-17", "/wait-24")
            ]
        assert [future.result() for future in slow] == [200, 504]
    finally:
        run("docker", "rm", "--force", name)
