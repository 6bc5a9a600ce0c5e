"""The doctor finds nothing wrong with our files, and names what is wrong with broken ones."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from serving.project import Project, has_compose

from serving.doctor import findings
from tests.support.commands import HOUSEKEEPING, ROOT, lacking, run

COMPOSE, GUNICORN, DOCKERFILE, UVICORN = (
    "docker-compose.yml",
    "gunicorn.conf.py",
    "Dockerfile",
    "uvicorn.json",
)
FLASK = "    build: {context: ., target: flask}\n"
SHELL = "python -m serving.gunicorn wsgi_app.flask_site"
EXEC = 'CMD ["python", "-m", "serving.gunicorn", "wsgi_app.flask_site"]'

# What stands in the file, what somebody made of it, and what every finding then says.
BROKEN = [
    (
        COMPOSE,
        "period: 30s",
        "period: 22s",
        ".stop_grace_period=22s: must be longer than gunicorn.conf.py: graceful_timeout=25",
    ),
    (COMPOSE, "  stop_grace_period: 30s\n", "", ".stop_grace_period=10s: must be longer than "),
    (
        GUNICORN,
        "graceful_timeout = 25",
        "graceful_timeout = 30",
        ".stop_grace_period=30s: must be longer than gunicorn.conf.py: graceful_timeout=30",
    ),
    (
        UVICORN,
        'shutdown": 20',
        'shutdown": 25',
        "timeout_graceful_shutdown=25: must be shorter than gunicorn.conf.py: graceful_timeout=25",
    ),
    (
        UVICORN,
        '  "timeout_graceful_shutdown": 20,\n',
        "",
        "Uvicorn's default: timeout_graceful_shutdown=None: must be set",
    ),
    (
        GUNICORN,
        "keepalive = 75",
        "keepalive = 5",
        "gunicorn.conf.py: keepalive=5: must be longer than a proxy's idle timeout (60 s)",
    ),
    (
        UVICORN,
        'keep_alive": 75',
        'keep_alive": 60',
        "uvicorn.json: timeout_keep_alive=60: must be longer than a proxy's idle timeout",
    ),
    (
        GUNICORN,
        '"WORKLOAD") == "asyncio"',
        '"WORKLOAD") == "io"',
        "max_requests=10000: must be 0 with Dockerfile: CMD: worker_class=serving.uvicorn.worker.Worker",
    ),
    (
        GUNICORN,
        "workers, reason = size.workers, size.reason",
        "workers, reason = 5, str()",
        "gunicorn.conf.py: workers=5: must be at most 4 with docker-compose.yml: ",
    ),
    (COMPOSE, "ALLOW_IPS: edge", "ALLOW_IPS: edge\n    WEB_CONCURRENCY: 9", ": workers=9: must be at most "),
    (
        GUNICORN,
        '"/dev/shm" if os.path.isdir("/dev/shm") else None',
        '"/var/tmp"',
        "gunicorn.conf.py: worker_tmp_dir=/var/tmp: must be in memory",
    ),
    (
        GUNICORN,
        "control_socket_disable = True",
        "",
        "Gunicorn's default: control_socket_disable=False: must be True with docker-compose.yml: ",
    ),
    (
        COMPOSE,
        FLASK,
        FLASK + '    ports: ["127.0.0.1:9000:8000"]\n    environment: {FORWARDED_ALLOW_IPS: "*"}\n',
        "flask.environment: FORWARDED_ALLOW_IPS=*: must name the proxy: on a published port",
    ),
    (
        COMPOSE,
        FLASK,
        FLASK + "    healthcheck: {disable: true}\n",
        "flask.healthcheck={'disable': True}: must be there",
    ),
    (COMPOSE, "interval: 5s", "interval: 3s", ".healthcheck.timeout=5s: must be at most its interval=3s"),
    (
        COMPOSE,
        "    timeout: 5s",
        "    timeout: 3s",
        ".healthcheck.timeout=3s: must be longer than serving/health.py: PROBE_TIMEOUT=4",
    ),
    (
        COMPOSE,
        "start_period: 60s",
        "start_period: 10s",
        ".healthcheck.start_period=10s: must, with interval x retries, be longer than a worker's boot",
    ),
    (
        COMPOSE,
        FLASK,
        FLASK + '    ports: ["9000:8000"]\n',
        "flask.ports=0.0.0.0:9000:8000: must be of loopback",
    ),
    (
        DOCKERFILE,
        EXEC,
        "CMD " + SHELL,
        "Dockerfile: CMD=python -m serving.gunicorn wsgi_app.flask_site: must be in exec form",
    ),
    (
        COMPOSE,
        FLASK,
        FLASK + f"    command: sh -c '{SHELL}'\n",
        "flask.command=python -m serving.gunicorn wsgi_app.flask_site: must be in exec form",
    ),
    (COMPOSE, "  restart: unless-stopped\n", "", ".restart=None: must be set"),
    (
        DOCKERFILE,
        "python:3.14-slim",
        "python:latest",
        "Dockerfile: FROM=python:latest: must name a release; change it to python:VERSION",
    ),
    (
        DOCKERFILE,
        "=caddy:2",
        "=registry.example:5000/caddy",
        "Dockerfile: FROM=registry.example:5000/caddy: must name a release",
    ),
    (DOCKERFILE, "USER 10001:10001\nARG", "ARG", ".USER=: must not be root"),
    (COMPOSE, "read_only: true", "read_only: false", ".read_only=None: must be true"),
    (COMPOSE, "cap_drop: [ALL]", "cap_drop: [NET_RAW]", ".cap_drop=['NET_RAW']: must be [ALL]"),
    (
        COMPOSE,
        "cap_add: [NET_BIND_SERVICE]",
        "cap_add: [SYS_ADMIN]",
        "edge.cap_add=['SYS_ADMIN']: must be nothing but NET_BIND_SERVICE",
    ),
    (
        COMPOSE,
        '  security_opt: ["no-new-privileges:true"]\n',
        "",
        ".security_opt=None: must be [no-new-privileges:true]",
    ),
    (COMPOSE, FLASK, FLASK + "    privileged: true\n", "flask.privileged=True: must be false"),
    (
        COMPOSE,
        ', options: {max-size: 10m, max-file: "3"}',
        "",
        ".logging={'driver': 'json-file'}: must be bounded",
    ),
    (COMPOSE, ", pids: 256", "", ".deploy.resources.limits.pids=None: must be set"),
    (
        DOCKERFILE,
        '.flask_site"]',
        '.flask_site", "--reload"]',
        "Dockerfile: CMD: reload=True: must be off in production",
    ),
    (
        COMPOSE,
        FLASK,
        FLASK + "    command: flask run --debug\n",
        "flask.command=flask run --debug: --debug must not run in production",
    ),
    (
        COMPOSE,
        "ALLOW_IPS: edge",
        'ALLOW_IPS: edge\n    DJANGO_DEBUG: "on"',
        ".environment.DJANGO_DEBUG=on: must be off in production",
    ),
    (
        UVICORN,
        "ws_max_size",
        "ws_max_sise",
        "uvicorn.json: ws_max_sise=1048576: must be an option of Uvicorn; change it to ws_max_size",
    ),
    (
        DOCKERFILE,
        '"asgi_app"]',
        '"uvicorn", "x:app", "--timeout-keep-alive=75", "--timeout-graceful-shutdown", "9"]',
        "x:app --timeout-keep-alive=75 --timeout-graceful-shutdown 9: must read uvicorn.json",
    ),
    (
        GUNICORN,
        "threads = 6",
        "threads = four",
        "gunicorn.conf.py: must be what Gunicorn can run: name 'four' is not defined",
    ),
    (
        DOCKERFILE,
        '.flask_site"]',
        '.flask_site", "--threads", "four"]',
        "argument --threads: invalid int value: 'four'",
    ),
    (COMPOSE, "read_only: true", "read_onyl: true", "docker-compose.yml: must be what Compose accepts: "),
    (UVICORN, "{", "[{", "uvicorn.json: must be one JSON object: "),
]

# A project of somebody else: files, and what is said of them.
FOREIGN = {
    "a sync worker": (
        {GUNICORN: "keepalive = 75\ngraceful_timeout = 20\nworker_tmp_dir = '/dev/shm'\n"},
        ["Gunicorn's default: worker_class=sync: must be gthread"],
    ),
    "an asyncio worker": (
        {GUNICORN: "worker_class = 'uvicorn_worker.UvicornWorker'\nmax_requests = 1000\nkeepalive = 75\n"},
        [
            "gunicorn.conf.py: max_requests=1000: must be 0 with gunicorn.conf.py: worker_class=uv",
            "Gunicorn's default: worker_tmp_dir=None: must be in memory",
        ],
    ),
    "an image alone": (
        {DOCKERFILE: "FROM python AS build\nFROM python:3.14\nCMD uvicorn app:app --reload\n"},
        [
            "Uvicorn's default: timeout_graceful_shutdown=None: must be set",
            "Uvicorn's default: timeout_keep_alive=5: must be longer",
            "CMD=uvicorn app:app --reload: must be in exec form",
            "Dockerfile: FROM=python: must name a release",
            ".USER=: must not be root",
            "Dockerfile: CMD: reload=True: must be off",
        ],
    ),
    "a script without exec": (
        {
            DOCKERFILE: 'FROM python:3.14\nUSER 1000\nCOPY . .\nENTRYPOINT ["/app/entrypoint.sh"]\n',
            "docker/entrypoint.sh": "#!/bin/sh\n./manage.py migrate\n./manage.py runserver\n",
        },
        ["docker/entrypoint.sh: last line=./manage.py runserver: must exec the server: "],
    ),
    "a script with exec": (
        {
            DOCKERFILE: 'FROM python:3.14\nUSER 1000\nENTRYPOINT ["/app/entrypoint.sh"]\n',
            "entrypoint.sh": '#!/bin/sh\n./manage.py migrate\nexec "$@"\n',
        },
        [],
    ),
    "everybody trusted, by both servers": (
        {
            GUNICORN: "threads = 2\nkeepalive = 75\nworker_tmp_dir = '/dev/shm'\nforwarded_allow_ips = '*'\n",
            UVICORN: '{"forwarded_allow_ips": "*", "timeout_keep_alive": 75, "timeout_graceful_shutdown": 9}',
        },
        [
            "gunicorn.conf.py: forwarded_allow_ips=*: must name the proxy: on a published port, *",
            "uvicorn.json: forwarded_allow_ips=*: must name the proxy: on a published port, *",
        ],
    ),
    "everybody trusted, where only a proxy connects": (
        {
            COMPOSE: "services: {web: {build: ., restart: 'no', read_only: true, cap_drop: [ALL], cpus: 1, "
            "mem_limit: 256m, pids_limit: 9, security_opt: ['no-new-privileges:true'], "
            "logging: {driver: local}, environment: {FORWARDED_ALLOW_IPS: '*'}}}"
        },
        [],
    ),
    "a word for a number": (
        {
            DOCKERFILE: "FROM python:3.14\nUSER 1000\nENV WEB_CONCURRENCY=four\n"
            'CMD ["uvicorn", "a:b", "--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "9"]\n'
        },
        [],
    ),
    "uvicorn.json alone": (
        {UVICORN: '{"timeout_keep_alive": 75, "grace": 1}'},
        [
            "timeout_graceful_shutdown=None: must be set",
            "uvicorn.json: grace=1: must be an option of Uvicorn",
        ],
    ),
    "2n+1 workers in 256 MB": (
        {
            COMPOSE: "services: {web: {build: ., mem_limit: 256m, cpus: 1, pids_limit: 100, restart: always, "
            "read_only: true, cap_drop: [ALL], security_opt: ['no-new-privileges:true'], "
            "logging: {driver: local}, healthcheck: {test: curl localhost}, stop_grace_period: 1m}}",
            GUNICORN: "import multiprocessing\nworkers = multiprocessing.cpu_count() * 2 + 1\nthreads = 2\n"
            "keepalive = 75\nworker_tmp_dir = '/dev/shm'\ncontrol_socket_disable = True\n",
        },
        [" must be at most 2 with docker-compose.yml: web.memory=256m and 128 MiB each (WORKER_MEMORY_MB)"],
    ),
    "a database": (
        {COMPOSE: "services: {db: {image: postgres, ports: ['5432:5432']}}"},
        [
            "db.ports=0.0.0.0:5432:5432: must be of loopback",
            "db.restart=None: must be set",
            "db.image=postgres: must name a release; change it to postgres:VERSION",
        ],
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Our files."""
    shutil.copytree(ROOT / "asgi_app", tmp_path / "asgi_app", ignore=HOUSEKEEPING)
    for name in (COMPOSE, GUNICORN, DOCKERFILE, UVICORN):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def needs_compose() -> None:
    """Skip what is about the Compose file where nothing can resolve it."""
    if not has_compose():
        lacking("no Docker Compose to resolve docker-compose.yml with")


def diagnose(directory: Path) -> list[str]:
    """What the doctor finds there, whatever a .env says."""
    return findings(Project(directory, "--env-file", "/dev/null"))


def doctor(directory: Path, expect: int, **environ: str) -> list[str]:
    """The lines that the command prints."""
    environ = dict(os.environ) | {"PYTHONPATH": str(ROOT)} | environ
    command = (sys.executable, "-m", "serving.doctor")
    return run(*command, cwd=directory, env=environ, expect=expect).splitlines()


def test_our_own_files_agree() -> None:
    """Nothing to change, nothing that was not looked at, each service with the server that it runs."""
    needs_compose()
    project = Project(ROOT, "--env-file", "/dev/null")
    assert findings(project) + project.unchecked == []
    servers = {p.name: (bool(p.gunicorn), bool(p.uvicorn)) for p in project.processes}
    assert servers == {
        "edge": (False, False),
        "migrate": (False, False),
        "django": (True, False),
        "flask": (True, False),
        "fastapi": (False, True),
        "fastapi-hybrid": (True, True),
    }


@pytest.mark.parametrize(("file", "old", "new", "sentence"), BROKEN, ids=[case[3] for case in BROKEN])
def test_what_somebody_broke_is_named(file: str, old: str, new: str, sentence: str, copy: Path) -> None:
    """One change, one kind of finding: both sides, and what to change."""
    needs_compose()
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    found = diagnose(copy)
    assert found
    assert [finding for finding in found if sentence not in finding] == []


@pytest.mark.parametrize(("files", "sentences"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_project_is_told_what_to_change(
    files: dict[str, str], sentences: list[str], tmp_path: Path
) -> None:
    """These findings and no other, from the files that are there."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    if COMPOSE in files:
        needs_compose()
    found = diagnose(tmp_path)
    assert len(found) == len(sentences), found
    assert [sentence for sentence in sentences if not any(sentence in finding for finding in found)] == []


@pytest.mark.parametrize("name", [COMPOSE, DOCKERFILE, GUNICORN, UVICORN])
def test_each_of_our_files_may_stand_alone(name: str, tmp_path: Path) -> None:
    """It is looked at, the others are said not to be there, and there is nothing to find."""
    if name == COMPOSE:
        needs_compose()
    shutil.copy(ROOT / name, tmp_path)
    lines = doctor(tmp_path, 0)
    others = {COMPOSE, DOCKERFILE, GUNICORN, UVICORN} - {name}
    assert set(lines[:-1]) == {f"not checked: {other}: not here" for other in others}
    assert lines[-1].startswith("0 findings, ")
    assert not lines[-1].endswith("nothing to look at")


def test_make_looks_at_another_project(tmp_path: Path) -> None:
    """`make doctor DIR=...`, where nobody has copied serving/, and with a finding."""
    (tmp_path / GUNICORN).write_text("threads = 2\nworker_tmp_dir = '/dev/shm'\n")
    assert "gunicorn.conf.py: not here" not in (output := run("make", "doctor", f"DIR={tmp_path}", expect=2))
    assert "Gunicorn's default: keepalive=2: must be longer" in output


def test_what_can_not_be_read_is_said(copy: Path) -> None:
    """Without Docker, without Gunicorn and Uvicorn, a line for each; findings make the exit code 1."""
    (copy / DOCKERFILE).write_text("FROM python\nUSER 1000\n" + EXEC)
    # -S: this Python without what is installed in it.
    bare = (sys.executable, "-S", "-m", "serving.doctor")
    lines = run(*bare, cwd=copy, env={"PATH": "/nowhere", "PYTHONPATH": str(ROOT)}, expect=1).splitlines()
    assert lines[:-1] == [
        "Dockerfile: FROM=python: must name a release; change it to python:VERSION",
        "not checked: docker-compose.yml: no Docker Compose here to resolve it",
        "not checked: gunicorn.conf.py: Gunicorn is not installed here to resolve it",
        "not checked: uvicorn.json's keys: Uvicorn is not installed here",
    ]
    assert lines[-1].startswith("1 findings, ")


def test_the_shell_of_the_doctor_is_not_the_containers(tmp_path: Path) -> None:
    """What WEB_CONCURRENCY and FORWARDED_ALLOW_IPS are here says nothing about the service there."""
    needs_compose()
    for name in (COMPOSE, GUNICORN, DOCKERFILE):
        shutil.copy(ROOT / name, tmp_path)
    assert doctor(tmp_path, 0, WEB_CONCURRENCY="99", FORWARDED_ALLOW_IPS="*")[-1].startswith("0 findings")
