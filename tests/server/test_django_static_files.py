"""Django's static files while two versions of the site serve next to each other, and single ranges."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, run
from tests.support.servers import Server
from wsgi_app.django_site.static_files import share

# services/test_guestbook.py has the static files of one version; these are two at a time.
pytestmark = pytest.mark.slow

SITE = "wsgi_app/django_site"
COLORS = ("red", "blue")


class Version:
    """A copy of the site with a stylesheet of its own, served with the same DATA_DIR as the others."""

    def __init__(self, directory: Path, data: Path, color: str) -> None:
        self.directory, self.environ = directory, {"DATA_DIR": str(data), "DJANGO_SECRET_KEY": "x" * 60}
        ignore = shutil.ignore_patterns("staticfiles", "__pycache__")
        for name in ("serving", SITE):
            shutil.copytree(ROOT / name, directory / name, ignore=ignore)
        shutil.copy(ROOT / "gunicorn.conf.py", directory)
        (directory / SITE / "static/guestbook.css").write_text(f"body {{ color: {color} }}")
        for command in (["migrate"], ["collectstatic", "--noinput"]):
            run(sys.executable, "-m", "wsgi_app.django_site", *command, cwd=directory, env=self.environ)

    @property
    def styles(self) -> str:
        """Where the version's pages have their stylesheet."""
        (path,) = self.directory.glob(f"{SITE}/staticfiles/guestbook.*.css")
        return f"/static/{path.name}"

    def serve(self, **environ: str) -> Server:
        """The version's server."""
        command = ("serving.gunicorn", "wsgi_app.django_site.wsgi")
        return Server(*command, cwd=self.directory, WEB_CONCURRENCY="1", **self.environ | environ)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """The old and the new version, with one data directory."""
    data = tmp_path_factory.mktemp("data")
    return [Version(tmp_path_factory.mktemp(color), data, color) for color in COLORS]


@pytest.fixture(scope="module")
def old(versions: list[Version]) -> Version:
    """The old version alone."""
    return versions[0]


@pytest.fixture(scope="module")
def servers(versions: list[Version]) -> Iterator[list[Server]]:
    """Both versions, running."""
    with ExitStack() as stack:
        yield [stack.enter_context(version.serve().wait("/readyz")) for version in versions]


@pytest.mark.parametrize("encoding", ["identity", "gzip", "br"])
@pytest.mark.parametrize("number", [0, 1])
def test_each_version_serves_the_files_of_both(
    versions: list[Version], servers: list[Server], number: int, encoding: str
) -> None:
    """In both directions, compressed and cacheable like its own."""
    assert versions[number].styles in httpx2.get(f"{servers[number].url}/").text
    for version, color in zip(versions, COLORS, strict=True):
        answer = httpx2.get(servers[number].url + version.styles, headers={"accept-encoding": encoding})
        assert (answer.status_code, answer.text) == (200, f"body {{ color: {color} }}")
        assert answer.headers.get("content-encoding", "identity") in (encoding, "identity")
        assert answer.headers["cache-control"].endswith("immutable")


@pytest.mark.parametrize(
    "path", ["../secret_key", "..%2fsecret_key", "%2e%2e/%2e%2e/secret_key", "admin/", "x.json"]
)
def test_only_static_files_are_served(servers: list[Server], path: str) -> None:
    """What else is in the data directory, and a directory, are not found."""
    assert httpx2.get(f"{servers[0].url}/static/{path}").status_code == 404


@pytest.mark.parametrize(
    ("value", "status", "content"),
    [
        ("bytes=0-0", 206, "b"),
        ("bytes=-1", 206, "}"),
        ("bytes=0-3", 206, "body"),
        ("bytes=20-20", 416, ""),
        ("bytes=99-", 416, ""),
    ],
)
def test_a_range_may_have_one_byte(
    old: Version, servers: list[Server], value: str, status: int, content: str
) -> None:
    """WhiteNoise itself answers 416 (whitenoise#711)."""
    headers = {"range": value, "accept-encoding": "identity"}
    answer = httpx2.get(servers[0].url + old.styles, headers=headers)
    assert (answer.status_code, answer.text) == (status, content)


def test_files_of_old_versions_are_removed(tmp_path: Path) -> None:
    """The files of the newest five versions stay, and each of them once."""
    for number in range(7):
        own = tmp_path / f"version-{number}"
        own.mkdir()
        names = ["common.css", f"{number}.css"]
        for name in names:
            (own / name).write_text(name)
            (own / f"{name}.gz").write_bytes(b"compressed")
        share(own, tmp_path / "shared", str(number), names)
        os.utime(tmp_path / f"shared/{number}.json", (number, number))
    shared = {path.name for path in (tmp_path / "shared/files").iterdir()}
    kept = ["common.css", *(f"{number}.css" for number in range(2, 7))]
    assert shared == {name + suffix for name in kept for suffix in ("", ".gz")}


def test_a_directory_that_cannot_be_written_stops_nothing(old: Version, tmp_path: Path) -> None:
    """The server says so, and serves its own files."""
    (tmp_path / "static").touch()
    with old.serve(DATA_DIR=str(tmp_path)).wait() as server:
        assert httpx2.get(server.url + old.styles).status_code == 200
        assert "static files are not shared with other versions: " in server.log()
