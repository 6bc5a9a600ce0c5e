"""Flask: an upload that fails leaves nothing in /tmp."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import poll
from tests.support.servers import Server
from tests.support.uploads import form, in_pieces, left_in, limit_files, upload

APP = """
import flask
from serving.wsgi import Service

app = flask.Flask(__name__)
application = Service(app)

@app.post("/")
def upload():
    return flask.request.files["file"].filename
"""


@pytest.mark.parametrize(
    "content", [form, lambda: in_pieces(form())], ids=["no space, with a length", "no space, in chunks"]
)
def test_a_failed_upload_of_flask_leaves_no_file(
    content: Callable[[], bytes | Iterator[bytes]], tmp_path: Path
) -> None:
    """Its temporary files have no name, but they take space until they are closed."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "app.py").write_text(APP)
    environ = {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "MAX_BODY": "64MiB"}
    with Server("serving.gunicorn", "--workers", "1", "app", **environ).wait() as server:
        limit_files(server)
        assert upload(server, content()) == 500, server.log()
        poll(lambda: left_in(tmp_path / "tmp", server) == [], 5)
