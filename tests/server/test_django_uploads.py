"""Django: an upload that fails leaves nothing in /tmp."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import poll
from tests.support.servers import Server
from tests.support.uploads import form, in_pieces, left_in, limit_files, upload

COMMAND = ("serving.gunicorn", "--workers", "1", "wsgi_app.django_site.wsgi")
# With this cookie Django reads the form, to look for the token in it.
COOKIE = f"csrftoken={'x' * 32}"


@pytest.mark.parametrize(
    ("content", "limited", "statuses"),
    [
        # 503 where its static files are missing, too.
        (form, True, (500, 503)),
        (lambda: in_pieces(form()), True, (500,)),
        # Django refuses the end of the file, after it has written the rest.
        (lambda: form("base64"), False, (400,)),
    ],
    ids=["no space, with a length", "no space, in chunks", "malformed"],
)
def test_a_failed_upload_of_django_leaves_no_file(
    content: Callable[[], bytes | Iterator[bytes]], limited: bool, statuses: tuple[int, ...], tmp_path: Path
) -> None:
    """Otherwise some of them fill /tmp, and then every upload fails."""
    (tmp_path / "tmp").mkdir()
    environ = {"DATA_DIR": str(tmp_path), "TMPDIR": str(tmp_path / "tmp"), "MAX_BODY": "64MiB"}
    with Server(*COMMAND, **environ).wait() as server:
        if limited:
            limit_files(server)
        assert upload(server, content(), COOKIE) in statuses, server.log()
        poll(lambda: left_in(tmp_path / "tmp", server) == [], 5)
