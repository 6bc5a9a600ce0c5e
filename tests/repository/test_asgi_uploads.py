"""Django under ASGI, which docs/adopt.md allows: an upload that fails leaves nothing in /tmp."""

from pathlib import Path

from tests.support.commands import poll
from tests.support.servers import Server
from tests.support.uploads import form, left_in, upload


def test_a_malformed_upload_leaves_no_file(tmp_path: Path) -> None:
    """As under WSGI: any client could fill /tmp otherwise."""
    (tmp_path / "tmp").mkdir()
    environ = {"DATA_DIR": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "MAX_BODY": "64MiB"}
    command = ("serving.uvicorn", "--lifespan", "off", "wsgi_app.django_site.asgi:application")
    with Server(*command, WEB_CONCURRENCY="1", **environ).wait() as server:
        cookie = f"csrftoken={'x' * 32}"
        assert upload(server, form("base64"), cookie) == 400, server.log()
        poll(lambda: left_in(tmp_path / "tmp", server) == [], 5, server.log)
