"""docs/adopt.md, followed to the letter, deploys applications of other people."""

import os
import re
import shutil
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
MORE = (ROOT / "docs/adopt-more.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))
# What you have -> how many lines to change, the command that checks.
TABLE = {
    cells[0]: cells[1:]
    for cells in (re.split(r" *\| *", row)[1:-1] for row in re.findall(r"^\| .*$", DOCUMENT, re.MULTILINE))
    if cells[0] in SECTIONS
}
NUMBERS = ("none", "one", "two", "three", "four", "five", "six")

WAGTAIL_LOCAL = """
import os

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "").split(",")
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/data/site.sqlite3"}}
"""
# Flask-SQLAlchemy's own quick start, with its database where the document says.
QUICK_START = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:////data/project.db"
db.init_app(app)


class User(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)


with app.app_context():
    db.create_all()


@app.get("/")
def users():
    return f"users: {len(db.session.execute(db.select(User)).all())}"
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


def quick_start(project: Path) -> None:
    """A module that opens a database when it is imported."""
    (project / "project.py").write_text(QUICK_START)
    (project / "requirements.txt").write_text("flask-sqlalchemy==3.1.1\n")


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
    # What the start says when it refuses the application, and the variables that the document then sets.
    refused: str = ""
    variables: str = ""


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
            "'shop.wsgi'": "'mysite.wsgi'",
        },
    ),
    "Flask, any WSGI": Stranger(
        "flask",
        quick_start,
        "users: 0",
        LACKING,
        {"shop:app": "project:app"},
        "connects to /data/project.db when it is imported",
        "PRELOAD=off\nWEB_CONCURRENCY=1\n",
    ),
    "FastAPI, any ASGI": Stranger(
        "fastapi",
        datasette,
        "books",
        LACKING,
        {"shop/main.py": "library/main.py", "shop.main": "library.main"},
    ),
}


def blocks(section: str, language: str, stranger: Stranger) -> list[str]:
    """The section's fenced blocks in a language, in the stranger's names."""
    found = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return [translate(block, stranger) for block in found]


def translate(text: str, stranger: Stranger) -> str:
    """The document's names replaced by the stranger's."""
    names = {
        "KIND=django": f"KIND={stranger.service}",
        # The files as they are here, whatever was released last.
        "gh:ORG/REPO": f"--vcs-ref HEAD {ROOT}",
        **stranger.names,
    }
    for ours, theirs in names.items():
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
    """The Compose project of a stranger's directory; the template with one application is next to it."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory, self.files[1] = directory, str(directory / "docker-compose.yml")
        self.environ |= {"R": "../shop-template", "COMPOSE_PROJECT_NAME": self.project}
        self.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def sh(self, command: str, expect: int = 0) -> str:
        """What a command of the document prints."""
        options = {"cwd": self.directory, "env": self.environ, "timeout": 600, "expect": expect}
        return run("bash", "-euo", "pipefail", "-c", command, **options)


@pytest.fixture(params=TABLE)
def adopted(request: pytest.FixtureRequest, engine: None, tmp_path: Path) -> Iterator[tuple[str, Adopted]]:
    """The document's row, and its project with all that the document says of it done."""
    row, stranger = request.param, STRANGERS[request.param]
    (project := tmp_path / "project").mkdir()
    stranger.make(project)
    stack = Adopted(project)
    (copy,), (lock,) = blocks("Copy the files", "sh", stranger), blocks(row, "sh", stranger)
    stack.sh(copy)
    stack.sh(lock)
    template = tmp_path / "shop-template"
    (template / ".venv").symlink_to(ROOT / ".venv")
    for file in (template / "requirements").iterdir():
        os.utime(file, (0, 0))  # or make would install what is there
    for name, lines in re.findall(r"^In `(\S+)`.*\n\n```ini\n([^`]*)^```", SECTIONS[row], re.MULTILINE):
        (project / name).write_text(translate(lines, stranger))
    changed = sum(edit(project, diff) for diff in blocks(row, "diff", stranger))
    assert changed <= 6
    assert re.match(r"\[(\w+) lines\]", TABLE[row][0])[1] == NUMBERS[changed]
    if stranger.service != "django":
        add_volume(project / "docker-compose.yml", stranger.service)
    try:
        yield row, stack
    finally:
        print(stack.log())
        stack.down()


def add_volume(file: Path, service: str) -> None:
    """The two lines by which a service gets /data."""
    one, two = re.findall(r"`(volumes: \[.+\]|data:)`", MORE)
    text = re.sub(rf"^  {service}:\n", rf"\g<0>    {one}\n", file.read_text(), flags=re.MULTILINE)
    file.write_text(re.sub(r"^volumes:\n", rf"\g<0>  {two}\n", text, flags=re.MULTILINE))


def test_a_strangers_application_keeps_every_promise(adopted: tuple[str, Adopted]) -> None:
    """It serves its page, hardened and without .env, keeps all but what it has not, and stops in order."""
    row, stack = adopted
    stranger = STRANGERS[row]
    service = stranger.service
    start, compare, *_ = "".join(blocks("Start, check, deploy", "sh", stranger)).splitlines()
    if stranger.refused:
        stack.sh(start, expect=1)
        (line,) = {line.partition("|")[2] for line in stack.log(service).splitlines() if " must be " in line}
        assert stranger.refused in line
        assert ".env.SERVICE" in line
        stack.compose("down")
        (stack.directory / f".env.{service}").write_text(stranger.variables)
    stack.sh(start)
    log = stack.log(service)
    assert not re.search(r"\b(error|critical|traceback)\b", log, re.IGNORECASE), log
    page = Site(stack.urls[service]).page
    assert (page.status, stranger.page in page.text) == (200, True), f"{page.text}\n{stack.log(service)}"
    assert page.headers["Content-Security-Policy"] == "frame-ancestors 'self'"

    check = stack.sh(re.search(r"`(.*)`", TABLE[row][1])[1])
    results = {name: re.search(rf"^(.*?)  +{name}: ", check, re.MULTILINE)[1] for name in CHECKS}
    lacking = {name for name, result in results.items() if result == "not applicable"}
    assert (lacking, set(results.values())) == (stranger.lacks, {"ok", "not applicable"}), check
    assert "\n0 findings, " in stack.sh(compare)

    posture = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}}"
    assert stack.inspect(service, posture) == "true [ALL] 10001:10001"
    assert not [name for name in stack.exec(service, "ls", "-A").split() if name.startswith(".env")]
    assert stack.stop(service) == 0, stack.log(service)


def test_the_settings_for_a_new_django_project_suffice(tmp_path: Path) -> None:
    """What the document adds after `startproject` lets the image be built and the checks pass."""
    python = (sys.executable, "manage.py")
    run(sys.executable, "-m", "django", "startproject", "shop", tmp_path)
    (added,) = re.findall(r"^```python\n(.*?)^```", SECTIONS["Django"], re.MULTILINE | re.DOTALL)
    with (tmp_path / "shop/settings.py").open("a") as settings:
        settings.write(added)
    build = re.search(r"^\+RUN (.*) python manage.py", SECTIONS["Django"], re.MULTILINE)[1]
    variables = dict(word.split("=") for word in build.split())
    run(*python, "collectstatic", "--noinput", cwd=tmp_path, env=os.environ | variables)
    assert (tmp_path / "staticfiles/admin/css/base.css").exists()
    (lines,) = re.findall(r"^```ini\n(.*?)^```", SECTIONS["Django"], re.MULTILINE | re.DOTALL)
    variables = dict(line.split("=", 1) for line in lines.splitlines())
    names = "s.DEBUG, s.DATABASES['default']['NAME'], s.ALLOWED_HOSTS"
    ask = f"from django.conf import settings as s; print({names})"
    shown = run(*python, "shell", "--verbosity", "0", "-c", ask, cwd=tmp_path, env=os.environ | variables)
    assert shown.strip() == f"False /data/db.sqlite3 {variables['ALLOWED_HOSTS'].split(',')}"


def test_what_the_document_adds_to_a_file_has_its_place() -> None:
    """The lines below which it adds something stand in the file once."""
    dockerfile = (ROOT / "Dockerfile").read_text().splitlines()
    lines = re.findall(r"^FROM .*", MORE, re.MULTILINE)
    assert [dockerfile.count(line) for line in lines] == [1, 1]


def test_a_database_and_secrets_pass_the_linter(tmp_path: Path) -> None:
    """`make lint` looks at the committed files, with the document's services and without secrets.

    `docker compose up --wait` fails for a service that goes on and whose check is disabled.
    """
    found = re.findall(r"^```yaml\n(  (\w+):\n.*?)^```", MORE, re.MULTILINE | re.DOTALL)
    snippets = {name: text for text, name in found}
    assert [name for name, text in snippets.items() if "disable: true" in text] == ["migrate"]
    snippet = snippets["db"] + "\n" + snippets["worker"]
    compose = (ROOT / "docker-compose.yml").read_text()
    added = compose.replace("\nservices:\n", f"\nservices:\n{snippet}\n").replace(
        "\nvolumes:\n", "\nvolumes:\n  db:\n"
    )
    (tmp_path / "docker-compose.yml").write_text(added)
    shutil.copy(ROOT / ".compose-lint.yml", tmp_path)
    for name in (".env.db", ".env.django"):
        (tmp_path / name).write_text("POSTGRES_PASSWORD=secret\nSECRET_KEY=secret\n")
    makefile = (ROOT / "Makefile").read_text()
    lines = re.findall(
        r"^\t\.venv/bin/((?:compose-lint|check-jsonschema) .* docker-compose\.yml)$", makefile, re.M
    )
    assert len(lines) == 2
    for line in lines:
        run(*f"{Path(sys.executable).parent}/{line}".split(), cwd=tmp_path)


def test_the_document_can_be_read_in_full() -> None:
    """It is short, and has each kind of service that there is."""
    assert len(DOCUMENT.splitlines()) < 200
    services = re.findall(r"^  ([\w-]+):$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert [*TABLE] == [row for row, stranger in STRANGERS.items() if stranger.service in services]
