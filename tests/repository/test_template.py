"""The repository as a template: every selection is whole, and updates keep what a project changed."""

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
# Application -> what would name it in a project that has not chosen it.
TRACES = {
    "django": "django|whitenoise|guestbook|collectstatic|createsuperuser|csrfmiddleware|DATABASE_URL",
    "flask": "flask",
    "fastapi": r"fastapi|asgi_app|uvicorn\.json|serving[./]uvicorn|WEBSOCKET_ORIGINS|hybrid|uvicorn_worker\.",
}
# What is improved in the template after v0.1.0: file, what stands there, what comes instead.
IMPROVED = [
    ("docker-compose.yml", "stop_grace_period: 90s", "stop_grace_period: 91s"),
    (".env.example", "\nMEMORY=512m\n", "\nMEMORY=640m\n"),
]
# The services of the profile `metrics`, which every project has.
MONITORING = {"alertmanager", "certificates", "grafana", "prometheus"}
IDENTITY = {
    f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}
COPIER = (sys.executable, "-m", "copier")


def git(directory: Path, *words: str) -> str:
    """Git's output there, without the user's configuration."""
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
        name = name.strip('"')
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
    """The services of all profiles, but for those of monitoring."""
    found = set(run("docker", "compose", "--profile", "*", "config", "--services", cwd=project).split())
    assert found >= MONITORING
    return found - MONITORING


def traces(project: Path, stack: str) -> dict[str, list[str]]:
    """Where a project names an application; checks/ looks at other projects and may name all."""
    found = {
        name: re.findall(TRACES[stack], f"{name}\n{text}", re.I) for name, text in texts(project).items()
    }
    return {name: words for name, words in found.items() if words and not name.startswith("checks/")}


def test_no_file_contains_a_statement_of_the_template_engine() -> None:
    """Only copier.yml and .template/ have statements of the template engine."""
    found = run("git", "grep", "-lE", r"copier: |\[\[[%=#]", "--", ":!copier.yml", ":!.template", expect=None)
    assert found.split() in ([], ["tests/repository/test_template.py"])


def test_with_all_applications_every_file_is_as_committed(template: Path, tmp_path: Path) -> None:
    """Byte for byte; README.md is the one exception."""
    project = render(template, tmp_path / "project")
    git(template, "checkout", "--quiet", "v0.1.0")
    try:
        differing = [
            name
            for name, text in texts(project).items()
            if name != ".copier-answers.yml" and text != (template / name).read_text()
        ]
    finally:
        git(template, "checkout", "--quiet", "v0.2.0")
    assert differing == ["README.md"]


@pytest.mark.parametrize("stacks", SELECTIONS, ids="-".join)
def test_every_selection_is_whole(stacks: tuple[str, ...], template: Path, tmp_path: Path) -> None:
    """Nothing names what was not chosen or a missing file; linters and tools accept the project."""
    if not shutil.which("docker"):
        lacking("no Docker Compose to resolve docker-compose.yml with")
    project = render(template, tmp_path / "project", stacks=f"[{','.join(stacks)}]")

    for name, text in texts(project).items():
        assert not re.search(r"\[\[[%=#]", text), name
        assert text.endswith("\n") or not text, name
        assert not text.endswith("\n\n"), name
        assert name.endswith(".py") or "\n\n\n" not in text, name
        if name.endswith(".py"):
            compile(text, name, "exec")
        if name.endswith(".md"):
            for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
                assert (project / name).parent.joinpath(target).exists(), f"{name} refers to {target}"
    for stack in set(STACKS) - set(stacks):
        assert traces(project, stack) == {}

    run(".venv/bin/ruff", "format", "--check", cwd=project)
    run(".venv/bin/ruff", "check", cwd=project)
    run(".venv/bin/mypy", "--cache-dir", template / ".mypy_cache", cwd=project)
    run(".venv/bin/hadolint", "Dockerfile", cwd=project)
    with_django = {"migrate", "postgres", "postgres-password"} if "django" in stacks else set()
    assert compose(project) == {"edge", *stacks} | with_django
    assert {path.stem for path in (project / "deploy/edge/sites").iterdir()} == set(stacks)
    for overlay in ("small", "production"):
        words = (".venv/bin/kubectl", "kustomize", f"deploy/kubernetes/overlays/{overlay}")
        deployments = re.findall(
            r"^kind: Deployment\nmetadata:\n(?: .*\n)*?  name: (.+)", run(*words, cwd=project), re.M
        )
        assert set(deployments) == {"edge", *stacks}
    groups = tomllib.loads((project / "pyproject.toml").read_text())["dependency-groups"]
    locks = {path.stem for path in (project / "requirements").glob("*.txt")}
    assert set(groups) == locks
    targets = re.findall(r"^  ([a-z-]+) ", run("make", cwd=project), re.MULTILINE)
    assert len(targets) > 8
    for target in targets:
        for runtime in ("docker", "process"):
            run("make", "--dry-run", target, f"RUNTIME={runtime}", cwd=project)


@pytest.mark.parametrize("stack", STACKS)
def test_a_single_stack_passes_its_own_tests(stack: str, template: Path, tmp_path: Path) -> None:
    """The project's smoke and drain tests pass in its containers and as processes."""
    project = render(template, tmp_path / "project", stacks=f"[{stack}]")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = (
        ".venv/bin/python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-m",
        "not slow",
    )
    output = run(*command, "tests/unit", "tests/services", cwd=project, env=environ, timeout=900)
    assert re.search(r"^=+ \d+ passed", output.splitlines()[-1]), output


@pytest.fixture(scope="module")
def committed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flask service of v0.1.0 that was edited since: added, changed, deleted, committed."""
    project = render(template, tmp_path_factory.mktemp("committed") / "project", stacks="[flask]")
    (project / ".venv").unlink()
    (project / "tests/unit/test_sizing.py").unlink()
    module = project / "wsgi_app/flask_site/__init__.py"
    module.write_text(module.read_text().replace("A small JSON service", "Our own service"))
    file = project / "docker-compose.yml"
    file.write_text(file.read_text().replace("services:\n", 'services:\n  cache: {image: "valkey:9"}\n', 1))
    (project / "ours.py").write_text('"""Ours, which once was a Django view."""\n')
    git(project, "init", "--quiet")
    commit(project)
    return project


@pytest.fixture
def project(committed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(committed, tmp_path / "project")


def assert_edits_are_kept(project: Path) -> None:
    """All edits of the project are still there."""
    assert not (project / "tests/unit/test_sizing.py").exists()
    assert "Our own service" in (project / "wsgi_app/flask_site/__init__.py").read_text()
    assert 'cache: {image: "valkey:9"}' in (project / "docker-compose.yml").read_text()
    assert "once was a Django view" in (project / "ours.py").read_text()


def test_an_update_brings_what_was_improved_around_what_was_edited(project: Path) -> None:
    """Changed lines, new files and edits come together, a deleted file stays deleted, nothing conflicts."""
    copier("update", "--quiet", cwd=project)
    assert_edits_are_kept(project)
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
    assert_edits_are_kept(project)
    both = r"<<<<<<< .*\nMEMORY=300m\n=======\nMEMORY=640m\n>>>>>>> "
    assert re.search(both, file.read_text()), file.read_text()
    assert "UU .env.example" in git(project, "status", "--porcelain")
    assert "stop_grace_period: 91s" in (project / "docker-compose.yml").read_text()


def test_a_stack_comes_and_goes_later(project: Path) -> None:
    """FastAPI is added with all its files, then dropped without a trace; edits stay."""
    before = compose(project)
    copier("update", "--quiet", cwd=project, stacks="[flask,fastapi]")
    assert_edits_are_kept(project)
    assert compose(project) == before | {"fastapi"}
    for name in (
        "asgi_app/main.py",
        "uvicorn.json",
        "requirements/fastapi.txt",
        "serving/uvicorn/launcher.py",
    ):
        assert (project / name).exists(), name
    commit(project)
    copier("update", "--quiet", cwd=project, stacks="[flask]")
    assert_edits_are_kept(project)
    assert compose(project) == before
    assert traces(project, "fastapi") == {}


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"stacks": "[]"}, "choose at least one of django, flask, fastapi"),
        ({"stacks": "[rails]"}, "'rails' is not in ['django', 'flask', 'fastapi']"),
    ],
)
def test_a_wrong_answer_is_refused(answers: dict, sentence: str, template: Path, tmp_path: Path) -> None:
    """The last line says what is allowed, and nothing is written."""
    output = copier("copy", template, tmp_path / "project", expect=1, **answers)
    assert sentence in output.splitlines()[-1]
    assert not (tmp_path / "project").exists()


def test_what_is_there_is_not_overwritten(template: Path, tmp_path: Path) -> None:
    """In a directory with a Makefile of its own, copier stops and names the option that insists."""
    (tmp_path / "Makefile").write_text("mine:\n")
    output = copier("copy", template, tmp_path, expect=1)
    assert "Consider using `--overwrite`" in output.splitlines()[-1]
    assert (tmp_path / "Makefile").read_text() == "mine:\n"


def test_uncommitted_work_is_not_touched(project: Path) -> None:
    """An update needs a clean working tree, and says so."""
    (project / "ours.py").write_text('"""Not committed."""\n')
    output = copier("update", cwd=project, expect=1)
    assert "Destination repository is dirty; cannot continue. Please commit or stash" in output
    assert git(project, "status", "--porcelain") == " M ours.py\n"


@pytest.mark.parametrize(
    "name",
    [
        "Dockerfile",
        "docker-compose.yml",
        "Makefile",
        "gunicorn.conf.py",
        ".env.example",
        *(str(path.relative_to(ROOT)) for path in (ROOT / "deploy/edge").rglob("*") if path.is_file()),
    ],
)
def test_files_that_are_copied_have_short_lines(name: str) -> None:
    """At most 100 characters, so that a reader needs no scrolling."""
    long = [line for line in (ROOT / name).read_text().splitlines() if len(line.expandtabs(4)) > 100]
    assert long == []


def test_the_first_view_stays_small() -> None:
    """Nineteen names that `ls` shows, a README of 130 lines, a Makefile of 110."""
    names = {
        line.split("/")[0] for line in run("git", "ls-files").splitlines() if not re.match('"?[.]', line)
    }
    assert len(names) <= 19, sorted(names)
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    assert len((ROOT / "Makefile").read_text().splitlines()) <= 110


def test_render_shows_what_a_project_would_lose() -> None:
    """`make render STACKS=flask` lists removed files and lines."""
    output = run(sys.executable, "-m", "bench.render", "flask")
    assert "source/uvicorn.json => /dev/null" in output or "deleted file mode" in output
    assert "-FROM runtime AS fastapi\n" in output
    assert "-FROM runtime AS flask\n" not in output
