"""docs/adopt.md, followed to the letter, deploys applications of other people."""

import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from checks.site import Site
from checks.smoke import CHECKS
from tests.support.commands import ROOT, run
from tests.support.containers import Containers

DOCUMENT = (ROOT / "docs/adopt.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
# What you have -> what to copy, how many lines to change, the command that checks.
TABLE = {
    cells[0]: cells[1:]
    for cells in (re.split(r" *\| *", row)[1:-1] for row in re.findall(r"^\| .*$", DOCUMENT, re.MULTILINE))
    if cells[0] in SECTIONS
}
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")

WAGTAIL_LOCAL = """
import os

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/data/site.sqlite3"}}
"""
DATASETTE_MAIN = """
from datasette.app import Datasette

app = Datasette(immutables=["library/books.db"]).app()
"""


def wagtail(project: Path) -> None:
    """A site as Wagtail's own command makes it, with its place for what differs between machines filled."""
    uv, python = Path(sys.executable).with_name("uv"), sys.executable
    run(
        uv, *f"tool run --quiet --python {python} --from wagtail==8.0.1 wagtail start mysite".split(), project
    )
    (project / "mysite/settings/local.py").write_text(WAGTAIL_LOCAL)
    (project / "requirements.txt").write_text("wagtail==8.0.1\n")


def httpbin(project: Path) -> None:
    """Nothing but a dependency."""
    (project / "requirements.txt").write_text("httpbin==0.10.4\n")


def datasette(project: Path) -> None:
    """A package with a database that Datasette shows."""
    (project / "library").mkdir()
    with closing(sqlite3.connect(project / "library/books.db")) as books:
        books.executescript("CREATE TABLE book (title TEXT); INSERT INTO book VALUES ('Walden');")
    (project / "library/main.py").write_text(DATASETTE_MAIN)
    (project / "requirements.txt").write_text("datasette==0.65.5\n")


@dataclass
class Stranger:
    """Somebody else's application, and what the document's names are there."""

    service: str
    make: Callable[[Path], None]
    page: str
    lacks: set[str]
    names: dict[str, str] = field(default_factory=dict)


LACKING = {"static files", "WebSocket", "sessions in memory", "HTTP/2"}
STRANGERS = {
    "Django": Stranger(
        "django",
        wagtail,
        "Welcome to your new Wagtail site!",
        {"WebSocket", "sessions in memory", "HTTP/2"},
        {
            "shop/settings.py": "mysite/settings/base.py",
            "shop.settings": "mysite.settings.production",
            "shop": "mysite",
        },
    ),
    "Flask, any WSGI": Stranger("flask", httpbin, "httpbin.org", LACKING, {"shop": "httpbin"}),
    "FastAPI, any ASGI": Stranger("fastapi", datasette, "books", LACKING, {"shop": "library"}),
}


def blocks(section: str, language: str, stranger: Stranger) -> list[str]:
    """The section's fenced blocks in a language, in the stranger's names."""
    found = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return [translate(block, stranger) for block in found]


def translate(text: str, stranger: Stranger) -> str:
    """The document's names replaced by the stranger's."""
    for ours, theirs in stranger.names.items():
        text = text.replace(ours, theirs)
    return text


def edit(project: Path, diff: str) -> int:
    """Change what the diff says, which stands in its file exactly once; the number of lines."""
    _, *parts = re.split(r"^--- (.+)\n", diff, flags=re.MULTILINE)
    for name, lines in zip(parts[::2], parts[1::2], strict=True):
        text = (project / name).read_text()
        # Context and what goes, then what comes; without the former it comes at the end.
        for hunk in re.findall(r"(?:[ -].*\n)*(?:\+.*\n)+", lines):
            old, new = ("".join(re.findall(rf"^[{kind}](.*\n)", hunk, re.MULTILINE)) for kind in (" -", " +"))
            assert not old or text.count(old) == 1, f"{name}: {text.count(old)} times:\n{old}"
            text = text.replace(old, new) if old else text + new
        (project / name).write_text(text)
    return len(re.findall(r"^\+", diff, re.MULTILINE))


class Adopted(Containers):
    """The Compose project of a stranger's directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory, self.files[1] = directory, str(directory / "docker-compose.yml")
        self.environ |= {"R": str(ROOT), "COMPOSE_PROJECT_NAME": self.project, "MAKEFLAGS": ""}
        self.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def sh(self, command: str) -> str:
        """What a command of the document prints."""
        options = {"cwd": self.directory, "env": self.environ, "timeout": 600}
        return run("bash", "-euo", "pipefail", "-c", command, **options)


@pytest.fixture(params=TABLE)
def adopted(request: pytest.FixtureRequest, engine: None, tmp_path: Path) -> Iterator[tuple[str, Adopted]]:
    """The document's row, and its project with all that the document says of it done."""
    row, stranger = request.param, STRANGERS[request.param]
    files, number, _ = TABLE[row]
    (project := tmp_path / "project").mkdir()
    stranger.make(project)
    stack = Adopted(project)
    for name, lines in re.findall(r"^In `(\S+)`.*\n\n```ini\n([^`]*)^```", SECTIONS[row], re.MULTILINE):
        (project / name).write_text(translate(lines, stranger))
    copy, start = blocks(row, "sh", stranger)
    stack.sh(copy)
    words = re.sub(r"--exclude \S+", "", copy.partition("| tar")[0]).split()
    assert {word for word in words if (ROOT / word).exists()} == set(re.findall(r"`(\S+)`", files))
    changed = sum(edit(project, diff) for diff in blocks(row, "diff", stranger))
    assert changed <= 6
    assert re.match(r"\[(\w+)\]", number)[1] == NUMBERS[changed]
    try:
        stack.sh(start)
        yield row, stack
    finally:
        print(stack.log())
        stack.down()


def test_a_strangers_application_keeps_every_promise(adopted: tuple[str, Adopted]) -> None:
    """It serves its page, hardened and without .env, keeps all but what it has not, and stops in order."""
    row, stack = adopted
    stranger = STRANGERS[row]
    service, log = stranger.service, stack.log(stranger.service)
    assert not re.search(r"\b(error|critical|traceback)\b", log, re.IGNORECASE), log
    page = Site(stack.urls[service]).page
    assert (page.status, stranger.page in page.text) == (200, True), f"{page.text}\n{stack.log(service)}"
    assert "default-src 'none'" not in page.headers["Content-Security-Policy"]

    check = stack.sh(re.search(r"`(.*)`", TABLE[row][2])[1])
    results = {name: re.search(rf"^(.*?)  +{name}: ", check, re.MULTILINE)[1] for name in CHECKS}
    lacking = {name for name, result in results.items() if result == "not applicable"}
    assert (lacking, set(results.values())) == (stranger.lacks, {"ok", "not applicable"}), check
    for command in blocks("Then", "sh", stranger):
        assert "\n0 findings, " in stack.sh(command)

    posture = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}}"
    assert stack.inspect(service, posture) == "true [ALL] 10001:10001"
    assert not [name for name in stack.exec(service, "ls", "-A").split() if name.startswith(".env")]
    assert stack.stop(service) == 0, stack.log(service)


def test_the_document_is_one_page() -> None:
    """It is short enough to read in full, and has each kind of service that there is."""
    assert len(DOCUMENT.splitlines()) < 200
    services = re.findall(r"^  ([\w-]+):$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert [*TABLE] == [row for row, stranger in STRANGERS.items() if stranger.service in services]
