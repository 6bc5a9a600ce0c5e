"""The repository as a template: every selection is whole, and follows what is improved here."""

import os
import re
import shutil
import sys
import tomllib
from itertools import combinations
from pathlib import Path

import pytest

from tests.support.commands import ROOT, lacking, run

STACKS = ("django", "flask", "fastapi")
SELECTIONS = [chosen for count in (1, 2, 3) for chosen in combinations(STACKS, count)]
# An answer -> what would tell of it where it was not given.
TRACES = {
    "django": "django|whitenoise|guestbook|collectstatic|createsuperuser|csrfmiddleware",
    "flask": "flask",
    "fastapi": r"fastapi|asgi_app|uvicorn\.json|WEBSOCKET_ORIGINS",
    "hybrid": "hybrid|uvicorn[._-]worker\\b",
    "edge": r"\bedge\b|caddy|\bEDGE_",
    # No Gunicorn at all.
    "gunicorn": r"gunicorn\.conf|serving\.gunicorn|wsgi_app",
}
# Where such a word is about any project: these look at others' files, answers, log lines.
ALLOWED = {
    ".copier-answers.yml": "edge|hybrid",
    "checks/doctor.py": ".*",
    "checks/project.py": ".*",
    "checks/servers.py": ".*",
    "checks/smoke.py": ".*",
    "tests/containers/test_containers.py": "serving.gunicorn",
}
# What is improved in the template after v0.1.0: file, what stands there, what comes instead.
IMPROVED = [
    ("docker-compose.yml", "stop_grace_period: 30s", "stop_grace_period: 31s"),
    (".env.example", "\nMEMORY=512m\n", "\nMEMORY=640m\n"),
]
IDENTITY = {
    f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
COPIER = (sys.executable, "-m", "copier")


def git(directory: Path, *words: str) -> str:
    """Git's output there, with nobody's configuration."""
    environ = os.environ | IDENTITY | {"GIT_CONFIG_GLOBAL": "/dev/null"}
    return run("git", *words, cwd=directory, env=environ)


def commit(directory: Path, tag: str = "") -> None:
    """Commit everything; tag it."""
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", "A step")
    if tag:
        git(directory, "tag", tag)


def copier(*words: str | Path, expect: int = 0, cwd: Path = ROOT, **answers: object) -> str:
    """Copier's output, without a terminal to ask at."""
    data = [word for name, value in answers.items() for word in ("--data", f"{name}={value}")]
    environ = os.environ | IDENTITY | {"GIT_CONFIG_GLOBAL": "/dev/null"}
    command = (*COPIER, words[0], "--defaults", *data, *words[1:])
    return run(*command, expect=expect, cwd=cwd, env=environ, stdin=-3)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree as a release, v0.1.0, and an improved one, v0.2.0."""
    directory = tmp_path_factory.mktemp("template")
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    git(directory, "init", "--quiet")
    commit(directory, "v0.1.0")
    for name, old, new in IMPROVED:
        text = (directory / name).read_text()
        assert old in text
        (directory / name).write_text(text.replace(old, new))
    (directory / "serving/improved.py").write_text('"""New in v0.2.0."""\n')
    commit(directory, "v0.2.0")
    return directory


def render(template: Path, directory: Path, **answers: object) -> Path:
    """A project of v0.1.0, with the environment of this repository."""
    copier("copy", "--quiet", "--vcs-ref", "v0.1.0", template, directory, **answers)
    (directory / ".venv").symlink_to(ROOT / ".venv")
    # Or make would install what is there.
    for lock in (directory / "requirements").iterdir():
        os.utime(lock, (0, 0))
    return directory


def texts(project: Path) -> dict[str, str]:
    """Every file's text, by its name in the project."""
    found = {}
    for folder, folders, names in project.walk():
        folders[:] = [name for name in folders if name not in (".git", ".venv") and "cache" not in name]
        files = [folder / name for name in names if (folder / name).is_file()]
        found |= {str(file.relative_to(project)): file.read_text() for file in files}
    return found


def compose(project: Path) -> set[str]:
    """The services of all profiles."""
    return set(run("docker", "compose", "--profile", "*", "config", "--services", cwd=project).split())


@pytest.mark.parametrize(
    ("stacks", "edge"),
    [
        # Without an edge there is no hybrid either.
        *((stacks, True) for stacks in SELECTIONS),
        *((stacks, False) for stacks in SELECTIONS if len(stacks) != 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "edge" if value else "bare",
)
def test_every_selection_is_whole(
    stacks: tuple[str, ...], edge: bool, template: Path, tmp_path: Path
) -> None:
    """Nothing tells of what was not chosen, or of a template; linters and tools take it as it is."""
    if not shutil.which("docker"):
        lacking("no Docker Compose to resolve docker-compose.yml with")
    hybrid = edge and "fastapi" in stacks
    answers = {"stacks": f"[{','.join(stacks)}]", "edge": edge} | ({} if hybrid else {"hybrid": False})
    project = render(template, tmp_path / "project", **answers)
    given = {*stacks, *(["edge"] if edge else []), *(["hybrid"] if hybrid else [])}
    given |= {"gunicorn"} if given & {"django", "flask", "hybrid"} else set()

    for name, text in texts(project).items():
        assert not re.search(r"copier: |\[\[\[ ", text), name
        assert text.endswith("\n") or not text, name
        assert not text.endswith("\n\n"), name
        if not name.endswith(".py"):
            assert "\n\n\n" not in text, name
        for answer in TRACES.keys() - given:
            # UVICORN_WORKERS is another one's name.
            case = 0 if answer == "hybrid" else re.IGNORECASE
            words = re.findall(TRACES[answer], f"{name}\n{text}", case)
            wrong = [word for word in words if not re.fullmatch(ALLOWED.get(name, ""), word, re.IGNORECASE)]
            assert wrong == [], f"{name} tells of {answer}"

    run(".venv/bin/ruff", "format", "--check", cwd=project)
    run(".venv/bin/ruff", "check", cwd=project)
    run(".venv/bin/mypy", "--cache-dir", template / ".mypy_cache", cwd=project)
    run(".venv/bin/hadolint", "Dockerfile", cwd=project)
    started = {*stacks} | (given & {"edge"})
    started |= {"migrate"} if "django" in stacks else set()
    started |= {"fastapi-hybrid"} if hybrid else set()
    assert compose(project) == started
    groups = tomllib.loads((project / "pyproject.toml").read_text())["dependency-groups"]
    assert {f"{name}.txt" for name in groups} == {path.name for path in (project / "requirements").iterdir()}
    targets = re.findall(r"^  ([a-z]+) ", run("make", cwd=project), re.MULTILINE)
    assert len(targets) > 8
    for target in targets:
        for runtime in ("docker", "process"):
            run("make", "--dry-run", target, f"RUNTIME={runtime}", cwd=project)


def test_a_blank_line_before_a_statement_stays(template: Path, tmp_path: Path) -> None:
    """With everything chosen, a file is this one without its statements: Jinja swallows none of it."""
    project, compared = render(template, tmp_path / "project"), 0
    for name, text in texts(project).items():
        ours = (template / name).read_text()
        for old, new in [(new, old) for file, old, new in IMPROVED if file == name]:
            ours = ours.replace(old, new)
        if "copier: " in ours and not re.search(r"copier: (if false|filter|print)|_copier_answers", ours):
            kept = [line for line in ours.splitlines(keepends=True) if "copier: " not in line]
            assert "".join(kept) == text, name
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("stack", STACKS)
def test_a_single_stack_passes_its_own_tests(stack: str, template: Path, tmp_path: Path) -> None:
    """What it promises is shown in its containers, and as processes; so is that a stop loses nothing."""
    project = render(template, tmp_path / "project", stacks=f"[{stack}]", edge=stack != "flask")
    chosen = "(test_smoke or test_contract or test_drain and processes) and not hybrid"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = (".venv/bin/python", "-m", "pytest", "-k", chosen, "-p", "no:cacheprovider")
    output = run(*command, cwd=project, env=environ, timeout=500)
    assert re.search(r"^=+ \d+ passed", output.splitlines()[-1]), output


@pytest.fixture(scope="module")
def committed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flask service of v0.1.0 that somebody has edited since: added, changed, deleted, committed."""
    project = render(template, tmp_path_factory.mktemp("committed") / "project", stacks="[flask]")
    (project / ".venv").unlink()
    (project / "tests/server/test_json.py").unlink()
    module = project / "wsgi_app/flask_site/__init__.py"
    module.write_text(module.read_text().replace("A small JSON service", "Our own service"))
    file = project / "docker-compose.yml"
    file.write_text(file.read_text().replace("services:\n", 'services:\n  cache: {image: "valkey:9"}\n', 1))
    (project / "ours.py").write_text('"""Ours."""\n')
    git(project, "init", "--quiet")
    commit(project)
    return project


@pytest.fixture
def project(committed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(committed, tmp_path / "project")


def edited(project: Path) -> None:
    """All of what somebody did is still there."""
    assert not (project / "tests/server/test_json.py").exists()
    assert "Our own service" in (project / "wsgi_app/flask_site/__init__.py").read_text()
    assert 'cache: {image: "valkey:9"}' in (project / "docker-compose.yml").read_text()
    assert (project / "ours.py").exists()


def test_an_update_brings_what_was_improved_around_what_was_edited(project: Path) -> None:
    """Changed lines, new files and edits come together, a deleted file stays deleted, nothing conflicts."""
    copier("update", "--quiet", cwd=project)
    edited(project)
    for name, _, new in IMPROVED:
        assert new in (project / name).read_text(), name
    assert (project / "serving/improved.py").exists()
    assert "_commit: v0.2.0" in (project / ".copier-answers.yml").read_text()
    assert not re.search("^(UU|AA|DU|UD) ", git(project, "status", "--porcelain"), re.MULTILINE)


def test_a_line_that_both_changed_is_a_conflict(project: Path) -> None:
    """It is marked, in git's index too, with both versions; everything else is brought all the same."""
    file = project / ".env.example"
    file.write_text(file.read_text().replace("\nMEMORY=512m\n", "\nMEMORY=300m\n"))
    commit(project)
    copier("update", "--quiet", cwd=project)
    edited(project)
    both = r"<<<<<<< .*\nMEMORY=300m\n=======\nMEMORY=640m\n>>>>>>> "
    assert re.search(both, file.read_text()), file.read_text()
    assert "UU .env.example" in git(project, "status", "--porcelain")
    assert "stop_grace_period: 31s" in (project / "docker-compose.yml").read_text()


def test_a_stack_comes_and_goes_later(project: Path) -> None:
    """FastAPI is added with all that is its own, then dropped without a trace; what was edited stays."""
    before = compose(project)
    copier("update", "--quiet", cwd=project, stacks="[flask,fastapi]")
    edited(project)
    assert compose(project) == before | {"fastapi", "fastapi-hybrid"}
    for name in (
        "asgi_app/main.py",
        "uvicorn.json",
        "requirements/fastapi.txt",
        "tests/services/test_fastapi.py",
    ):
        assert (project / name).exists(), name
    commit(project)
    copier("update", "--quiet", cwd=project, stacks="[flask]")
    edited(project)
    assert compose(project) == before
    found = {name for name, text in texts(project).items() if re.search(TRACES["fastapi"], name + text)}
    assert found <= ALLOWED.keys()


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"stacks": "[]"}, "choose at least one of django, flask, fastapi"),
        ({"stacks": "[rails]"}, "'rails' is not in ['django', 'flask', 'fastapi']"),
        ({"stacks": "[flask]", "hybrid": True}, "only together with fastapi"),
    ],
)
def test_a_wrong_answer_is_refused(answers: dict, sentence: str, template: Path, tmp_path: Path) -> None:
    """The last line says what is allowed, and nothing is written."""
    output = copier("copy", template, tmp_path / "project", expect=1, **answers)
    assert sentence in output.splitlines()[-1]
    assert not (tmp_path / "project").exists()


def test_what_is_there_is_not_overwritten(template: Path, tmp_path: Path) -> None:
    """In a directory with a Makefile of its own, copier stops there, and says how one would insist."""
    (tmp_path / "Makefile").write_text("mine:\n")
    output = copier("copy", template, tmp_path, expect=1)
    assert "Consider using `--overwrite`" in output.splitlines()[-1]
    assert (tmp_path / "Makefile").read_text() == "mine:\n"


def test_a_copier_too_old_is_refused(template: Path, tmp_path: Path) -> None:
    """Both versions are named, and nothing is written."""
    newer = shutil.copytree(template, tmp_path / "newer")
    text, count = re.subn(
        r'(?<=_min_copier_version: )"[\d.]+"', '"99.0.0"', (newer / "copier.yml").read_text()
    )
    assert count == 1
    (newer / "copier.yml").write_text(text)
    commit(newer, "v0.3.0")
    output = copier("copy", newer, tmp_path / "project", expect=1)
    assert re.search(r"requires Copier version >= 99.0.0", output), output
    assert not (tmp_path / "project").exists()


def test_uncommitted_work_is_not_touched(project: Path) -> None:
    """An update wants a clean working tree, and says so."""
    (project / "ours.py").write_text('"""Not committed."""\n')
    output = copier("update", cwd=project, expect=1)
    assert "Destination repository is dirty; cannot continue. Please commit or stash" in output
    assert git(project, "status", "--porcelain") == " M ours.py\n"


def test_the_top_level_stays_small() -> None:
    """Eighteen names that `ls` shows; a Dockerfile of sixty lines; fifteen make targets; no more."""
    names = {line.split("/")[0] for line in run("git", "ls-files").splitlines() if not line.startswith(".")}
    assert len(names) <= 18, sorted(names)
    # Without the template's control statements, which no rendered project has.
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if "# copier:" not in line]
    assert len(lines) <= 60
    assert len(re.findall(r"^[a-z-]+:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)) <= 15
