"""METRICS=on with Django: its middleware names the route."""

from pathlib import Path

import httpx2

from tests.support.commands import poll
from tests.support.exporter import Measured

REQUESTS = "http_server_request_duration_seconds_count"


def test_the_route_is_that_of_the_view(tmp_path: Path) -> None:
    """With parameters as they are declared."""
    environ = {"DATA_DIR": str(tmp_path), "WEB_CONCURRENCY": "1"}
    with Measured("serving.gunicorn", "wsgi_app.django_site.wsgi", **environ).wait() as server:
        for target in ("/admin/login/", "/admin/auth/user/7/change/", "/nowhere"):
            httpx2.get(server.url + target, trust_env=False)
        figures = poll(lambda: (now := server.scrape()).total(REQUESTS) == 3 and now, log=server.log)
        assert figures.values(REQUESTS, "http_route") == {
            "/admin/login/",
            "/admin/auth/user/<path:object_id>/change/",
            "_OTHER",
        }
