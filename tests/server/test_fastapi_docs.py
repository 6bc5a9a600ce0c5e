"""FastAPI's documentation pages work without any other server."""

import re

import httpx2
import pytest

from tests.support.servers import Server


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_loads_nothing_from_elsewhere(path: str) -> None:
    """Each script, style sheet and image of the page comes from the application itself."""
    with Server("serving.uvicorn", WEB_CONCURRENCY="1") as server, httpx2.Client(trust_env=False) as client:
        server.wait()
        page = client.get(server.url + path).text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(assets) >= 2, page
        assert [asset for asset in assets if not asset.startswith("/")] == []
        for asset in assets:
            answer = client.get(server.url + asset)
            assert (answer.status_code, len(answer.content) > 1000) == (200, True), asset
