"""Each rule of the doctor: nothing in files that agree, both sides where one of them was changed."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from checks.doctor import CONTAINER_RULES, PROJECT_RULES, findings
from checks.project import Project, has_compose
from checks.servers import Settings
from tests.support.commands import ROOT, lacking, run

pytestmark = pytest.mark.slow

COMPOSE, GUNICORN, DOCKERFILE, UVICORN = (
    "docker-compose.yml",
    "gunicorn.conf.py",
    "Dockerfile",
    "uvicorn.json",
)
CADDYFILE, SITE, SUPERVISOR = (
    "deploy/edge/Caddyfile",
    "deploy/edge/sites/web.caddy",
    "deploy/process/supervisord.conf",
)

# A project whose files agree. Each case below changes one thing in it.
HEALTHY = {
    COMPOSE: """
x-container: &container
  read_only: true
  tmpfs: ["/tmp:size=64m,mode=1777"]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  restart: unless-stopped
  stop_grace_period: 90s
  deploy: {resources: {limits: {cpus: "1.0", memory: 512m, pids: 1024}}}
  logging: {driver: json-file, options: {max-size: 10m, max-file: "3"}}
x-app: &app
  <<: *container
  depends_on: [database]
  environment: &environment
    FORWARDED_ALLOW_IPS: edge
    REQUEST_TIMEOUT: "${REQUEST_TIMEOUT:-20}"
    MAX_BODY: "${MAX_BODY:-1MiB}"
    DRAIN_SECONDS: "${DRAIN_SECONDS:-2}"
  healthcheck: &healthcheck
    test: [CMD, python, -IS, serving/probe.py]
    interval: 10s
    timeout: 5s
    retries: 3
    start_period: 60s
services:
  edge:
    <<: *container
    build: {context: ., target: edge}
    cap_add: [NET_BIND_SERVICE]
    ports: ["443:443"]
    environment:
      REQUEST_TIMEOUT: "${REQUEST_TIMEOUT:-20}"
      MAX_BODY: "${MAX_BODY:-1MiB}"
      DRAIN_SECONDS: "${DRAIN_SECONDS:-2}"
    healthcheck: {<<: *healthcheck, test: [CMD, wget, localhost]}
  web:
    <<: *app
    build: {context: ., target: web}
    env_file: [{path: .env.web, required: false}]
  api:
    <<: *app
    build: {context: ., target: api}
  database:
    image: postgres:17
    restart: unless-stopped
    command: [postgres, -c, shared_buffers=64MB]
""",
    DOCKERFILE: """
ARG EDGE_IMAGE=edge-default
FROM caddy:2.11 AS edge-default
FROM ${EDGE_IMAGE} AS edge
USER 10001:10001

FROM python:3.14-slim AS web
USER 10001:10001
CMD ["gunicorn", "app"]

FROM web AS api
CMD ["python", "-m", "launcher"]
""",
    GUNICORN: """
import os
worker_class = "gthread"
workers, threads = 2, 6
timeout = 30
graceful_timeout = int(os.environ.get("REQUEST_TIMEOUT", 20)) + 5
keepalive = 75
max_requests = 10_000
limit_request_field_size = 16 * 1024
worker_tmp_dir = "/dev/shm"
control_socket_disable = True
""",
    UVICORN: """{
  "timeout_keep_alive": 75,
  "timeout_graceful_shutdown": 20,
  "timeout_worker_healthcheck": 30
}""",
    "launcher.py": "FILE = 'uvicorn.json'",
    "serving/probe.py": "TIMEOUT = 4",
    CADDYFILE: """
{
	grace_period {$REQUEST_TIMEOUT:20}s
	servers {
		timeouts {
			read_header 5s # slow clients
		}
		max_header_size 8KiB
	}
}
import sites/*.caddy
""",
    SITE: """
http://web {
	request_body {
		max_size {$MAX_BODY}
	}
	reverse_proxy web:8000 {
		lb_try_duration {$DRAIN_SECONDS}s{$REQUEST_TIMEOUT}s35s
		request_buffers 1MiB
		transport http {
			keepalive 60s
			response_header_timeout {$REQUEST_TIMEOUT:20}s
		}
	}
}
""",
    SUPERVISOR: """
[program:web]
command = gunicorn app
stopwaitsecs = 30
""",
    ".env": "REQUEST_TIMEOUT=20\nMAX_BODY=1MiB\n",
    ".env.web": "SECRET='a$b #c'\n",
}

WEB = "    build: {context: ., target: web}\n"
API = "    build: {context: ., target: api}\n"

# What stands in the file, what it becomes, and what every finding then says.
BROKEN = [
    # Stopping and starting.
    (
        COMPOSE,
        "stop_grace_period: 90s",
        "stop_grace_period: 29s",
        "web.stop_grace_period=29s: must be longer than DRAIN_SECONDS=2 + gunicorn.conf.py: graceful",
    ),
    (COMPOSE, "  stop_grace_period: 90s\n", "", "stop_grace_period=10s: must be longer than "),
    (
        ".env",
        "REQUEST_TIMEOUT=20",
        "REQUEST_TIMEOUT=100",
        "stop_grace_period=1m30s: must be longer than |web.stopwaitsecs=30: must be longer than ",
    ),
    (
        GUNICORN,
        "+ 5",
        "- 1",
        "response_header_timeout=20s: must be at most gunicorn.conf.py: graceful_timeout=19",
    ),
    (
        SITE,
        "response_header_timeout {$REQUEST_TIMEOUT:20}s",
        "response_header_timeout 1m",
        "web.caddy:11: response_header_timeout=1m: must be at most gunicorn.conf.py: graceful_timeout=25"
        "|Caddyfile:3: grace_period=20s: must be at least",
    ),
    (
        CADDYFILE,
        "grace_period {$REQUEST_TIMEOUT:20}s",
        "grace_period 2m",
        "edge.stop_grace_period=1m30s: must be longer than deploy/edge/Caddyfile:3: grace_period=2m",
    ),
    (
        SITE,
        "s35s",
        "s20s",
        "web.caddy:7: lb_try_duration=2s20s20s: must be at least DRAIN_SECONDS=2 + gunicorn",
    ),
    (
        SUPERVISOR,
        "stopwaitsecs = 30",
        "stopwaitsecs = 25",
        "supervisord.conf: web.stopwaitsecs=25: must be longer than gunicorn.conf.py: graceful_timeout=25",
    ),
    (
        COMPOSE,
        API,
        API + "    command: gunicorn --worker-class launcher.Worker --max-requests 0 "
        "--graceful-timeout 20 app\n",
        "timeout_graceful_shutdown=20: must be shorter than docker-compose.yml: api.command: graceful",
    ),
    (
        COMPOSE,
        WEB,
        WEB + "    healthcheck: {disable: true}\n",
        "web.healthcheck={'disable': True}: must be set",
    ),
    (
        COMPOSE,
        "interval: 10s",
        "interval: 5s",
        ".healthcheck.timeout=5s: must be shorter than its interval=5s",
    ),
    (
        COMPOSE,
        "    timeout: 5s",
        "    timeout: 4s",
        ".healthcheck.timeout=4s: must be longer than serving/probe.py: TIMEOUT=4",
    ),
    (
        GUNICORN,
        "timeout = 30",
        "timeout = 120",
        "web.healthcheck.start_period=60s: must, together with interval x retries, be at least the time",
    ),
    (COMPOSE, "  restart: unless-stopped\n  stop", "  stop", ".restart=None: must be set"),
    (DOCKERFILE, '["gunicorn", "app"]', "gunicorn app", "Dockerfile: CMD=gunicorn app: must be in exec form"),
    (
        COMPOSE,
        WEB,
        WEB + "    command: sh -c 'gunicorn app'\n",
        "web.command=gunicorn app: must be in exec form",
    ),
    # The edge.
    (
        GUNICORN,
        "keepalive = 75",
        "keepalive = 5",
        "gunicorn.conf.py: keepalive=5: must be longer than a proxy's idle timeout (60 s)|: must be shorter",
    ),
    (
        UVICORN,
        'keep_alive": 75',
        'keep_alive": 60',
        "uvicorn.json: timeout_keep_alive=60: must be longer than a proxy's idle timeout",
    ),
    (
        SITE,
        "keepalive 60s",
        "keepalive 75s",
        "web.caddy:10: keepalive=75s: must be shorter than gunicorn.conf.py: keepalive=75",
    ),
    (SITE, "\t\t\tkeepalive 60s\n", "", "keepalive=120s: must be set and shorter than "),
    (CADDYFILE, "read_header", "read_body", "servers.timeouts.read_header=None: must be set"),
    (
        SITE,
        "keepalive 60s",
        "keepalive {$IDLE}",
        "web.caddy:10: {$IDLE}=: must be in docker-compose.yml: edge.environment; change it there",
    ),
    (CADDYFILE, "8KiB", "1MiB", "max_header_size=1MiB: must, with the 4096 bytes that Go adds, be at most"),
    (
        SITE,
        "max_size {$MAX_BODY}",
        "max_size 10MB",
        "max_size=10MB: must be at most docker-compose.yml: web.environment.MAX_BODY=1MiB",
    ),
    (SITE, "request_buffers 1MiB", "request_buffers -1", "request_buffers=-1: must have a bound"),
    # Memory and processes.
    (
        ".env",
        "MAX_BODY=1MiB",
        "MAX_BODY=100MiB",
        ".tmpfs./tmp.size=64m: must be at least 4 x MAX_BODY=100MiB",
    ),
    (COMPOSE, "size=64m", "size=300m", ".tmpfs./tmp.size=300m: must be at most half of "),
    (
        GUNICORN,
        "workers, threads = 2, 6",
        "workers, threads = 5, 6",
        "gunicorn.conf.py: workers=5: must be at most 4 with docker-compose.yml: web.memory=512m",
    ),
    (
        COMPOSE,
        API,
        API + "    environment: {<<: *environment, WEB_CONCURRENCY: 9}\n",
        ": workers=9: must be at most ",
    ),
    (
        COMPOSE,
        "pids: 1024",
        "pids: 50",
        ".pids=50: must be at least 54 for serving/sizing.py: workers=1 of 40",
    ),
    (
        COMPOSE,
        "shared_buffers=64MB",
        "max_connections=30",
        "database.max_connections=30: must be at least 38 = web (1 + 1) x 2 x 7 + 10; change it to -c max",
    ),
    (
        COMPOSE,
        "command: [postgres, -c, shared_buffers=64MB]",
        "command: [postgres, -c, max_connections=200]\n    pids_limit: 200",
        "database.pids=200: must be at least 230 for its connections; change it to 230 (PIDS)",
    ),
    (
        COMPOSE,
        "target: api}\n  database:\n",
        "target: api}\n    environment: {<<: *environment, CACHE: 'redis://database'}\n"
        "  database:\n    profiles: [data]\n",
        ".env: COMPOSE_PROFILES='': must contain data, because api's CACHE names database; change one",
    ),
    # The servers.
    (
        GUNICORN,
        'worker_class = "gthread"\nworkers, threads = 2, 6',
        "workers = 2",
        "Gunicorn's default: worker_class=sync: must be gthread",
    ),
    (
        GUNICORN,
        '"gthread"',
        '"uvicorn_worker.UvicornWorker"',
        "gunicorn.conf.py: max_requests=10000: must be 0 with gunicorn.conf.py: worker_class=uvicorn_worker",
    ),
    (GUNICORN, '"/dev/shm"', '"/var/tmp"', "gunicorn.conf.py: worker_tmp_dir=/var/tmp: must be in memory"),
    (
        GUNICORN,
        "control_socket_disable = True",
        "",
        "Gunicorn's default: control_socket_disable=False: must be True with docker-compose.yml: ",
    ),
    (
        COMPOSE,
        WEB,
        WEB + '    ports: ["127.0.0.1:9000:8000"]\n'
        '    environment: {<<: *environment, FORWARDED_ALLOW_IPS: "*"}\n',
        "web.environment: FORWARDED_ALLOW_IPS=*: must name the proxy: on a published port",
    ),
    (DOCKERFILE, '"app"]', '"app", "--reload"]', "Dockerfile: CMD: reload=True: must be off in production"),
    (
        COMPOSE,
        WEB,
        WEB + "    command: flask run --debug\n",
        "web.command=flask run --debug: --debug must not run in production",
    ),
    (
        COMPOSE,
        "ALLOW_IPS: edge",
        'ALLOW_IPS: edge\n    DJANGO_DEBUG: "on"',
        ".environment.DJANGO_DEBUG=on: must be off in production",
    ),
    (
        UVICORN,
        'timeout_keep_alive": 75,',
        'timeout_keep_alive": 75, "ws_max_sise": 1,',
        "uvicorn.json: ws_max_sise=1: must be an option of Uvicorn; change it to ws_max_size",
    ),
    (
        COMPOSE,
        "  environment: &environment\n",
        "  environment: &environment\n    UVICORN_TIMEOUT_KEEPALIVE: 5\n",
        "docker-compose.yml: timeout_keepalive=5: must be an option of Uvicorn; change",
    ),
    (
        GUNICORN,
        "keepalive = 75\n",
        "keepalive = 75\nmax_reqests_jitter = 5\n",
        "gunicorn.conf.py: max_reqests_jitter: must be a setting of Gunicorn, which ignores it; "
        "change it to max_requests_jitter",
    ),
    (
        GUNICORN,
        "keepalive = 75\n",
        "keepalive = 75\ndef on_startin(server):\n    local = server\n",
        "gunicorn.conf.py: on_startin: must be a setting of Gunicorn, which ignores it; "
        "change it to on_starting",
    ),
    (
        ".env",
        "REQUEST_TIMEOUT=20",
        "REQUEST_TIMEOUT=20\nCPUS=-1",
        ".env: CPUS='-1': must be a number of CPUs such as 0.5 or 2, or 0 for no limit; change it to 1.0"
        "|: CPUS: must not be here",
    ),
    (
        DOCKERFILE,
        '"python", "-m", "launcher"]',
        '"uvicorn", "x:app", "--timeout-keep-alive=75", "--timeout-graceful-shutdown", "9"]',
        "x:app --timeout-keep-alive=75 --timeout-graceful-shutdown 9: must read uvicorn.json",
    ),
    # Images and isolation.
    (COMPOSE, WEB, WEB + '    ports: ["9000:8000"]\n', "web.ports=0.0.0.0:9000:8000: must be on loopback"),
    (
        DOCKERFILE,
        "python:3.14-slim",
        "python:latest",
        "Dockerfile: FROM=python:latest: must name a release; change it to python:VERSION",
    ),
    (
        DOCKERFILE,
        "python:3.14-slim",
        "registry.example:5000/python",
        "Dockerfile: FROM=registry.example:5000/python: must name a release",
    ),
    (DOCKERFILE, "caddy:2.11", "caddy:2-alpine", "FROM=caddy:2-alpine: must name a minor release"),
    (
        COMPOSE,
        "target: edge}",
        "target: edge, args: {EDGE_IMAGE: mirror/caddy}}",
        "edge.build.args.EDGE_IMAGE=mirror/caddy: must name a release",
    ),
    (COMPOSE, "postgres:17", "postgres:alpine", "database.image=postgres:alpine: must name a release"),
    (DOCKERFILE, "AS web\nUSER 10001:10001", "AS web", ".USER=: must not be root"),
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
    (COMPOSE, WEB, WEB + "    privileged: true\n", "web.privileged=True: must be false"),
    (
        COMPOSE,
        ', options: {max-size: 10m, max-file: "3"}',
        "",
        ".logging={'driver': 'json-file'}: must be bounded",
    ),
    (COMPOSE, ", pids: 1024", "", ".deploy.resources.limits.pids=None: must be set"),
    # The .env files.
    (
        ".env",
        "MAX_BODY=1MiB",
        "PASSWORD=a$b",
        ".env: line 2: PASSWORD: must have no bare $: Compose replaces it; "
        "change it to PASSWORD='...' in single quotes|.env: line 2: PASSWORD: must not be here",
    ),
    (
        ".env.web",
        "SECRET='a$b #c'",
        "\nSECRET=a${b",
        ".env.web: line 2: SECRET: must have no bare $|must be what Compose accepts",
    ),
    (
        ".env",
        "MAX_BODY=1MiB",
        "FASTAPI_HYBRID_PORT=8004",
        ".env: line 2: FASTAPI_HYBRID_PORT: must go: nothing reads it any more; change it to FASTAPI_TARGET=",
    ),
    (".env", "MAX_BODY=1MiB", "DRAIN_FILE=/tmp/draining", ".env: line 2: DRAIN_FILE: must go: "),
    (
        ".env",
        "MAX_BODY=1MiB",
        "WEB_SECRET_KEY=a",
        ".env: line 2: WEB_SECRET_KEY: must not be here, because Compose gives .env to no container; "
        "change the file to .env.web",
    ),
    # What a server or Compose would refuse.
    (
        GUNICORN,
        "workers, threads = 2, 6",
        "threads = four",
        "gunicorn.conf.py: must be what Gunicorn can run: name 'four' is not defined",
    ),
    (DOCKERFILE, '"app"]', '"app", "--threads", "four"]', "argument --threads: invalid int value: 'four'"),
    (COMPOSE, "read_only: true", "read_onyl: true", "docker-compose.yml: must be what Compose accepts: "),
    (UVICORN, "{", "[{", "uvicorn.json: must be one JSON object: "),
    (SUPERVISOR, "[program:web]", "[program:web", "supervisord.conf: must be what supervisord accepts: "),
]

# Projects that are not ours: their files, and the findings.
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
        ["docker/entrypoint.sh: last line=./manage.py runserver: must exec the server, because "],
    ),
    "a script with exec": (
        {
            DOCKERFILE: 'FROM python:3.14\nUSER 1000\nENTRYPOINT ["/app/entrypoint.sh"]\n',
            "entrypoint.sh": '#!/bin/sh\n./manage.py migrate\nexec "$@"\n',
        },
        [],
    ),
    "every client trusted, by both servers": (
        {
            GUNICORN: "threads = 2\nkeepalive = 75\nworker_tmp_dir = '/dev/shm'\nforwarded_allow_ips = '*'\n",
            UVICORN: '{"forwarded_allow_ips": "*", "timeout_keep_alive": 75, "timeout_graceful_shutdown": 9}',
        },
        [
            "gunicorn.conf.py: forwarded_allow_ips=*: must name the proxy: on a published port, *",
            "uvicorn.json: forwarded_allow_ips=*: must name the proxy: on a published port, *",
        ],
    ),
    "every client trusted, where only a proxy connects": (
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
            "db.ports=0.0.0.0:5432:5432: must be on loopback",
            "db.restart=None: must be set",
            "db.image=postgres: must name a release; change it to postgres:VERSION",
        ],
    ),
}


def write(directory: Path, files: dict[str, str]) -> None:
    """Write these files."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def needs_compose() -> None:
    """Skip a test of the Compose file where nothing can resolve it."""
    if not has_compose():
        lacking("no Docker Compose to resolve docker-compose.yml with")


def doctor(directory: Path, expect: int, **environ: str) -> list[str]:
    """The lines that the command prints."""
    command = (sys.executable, "-m", "checks.doctor", str(directory))
    return run(*command, cwd=ROOT, env=dict(os.environ) | environ, expect=expect).splitlines()


def test_files_that_agree_have_no_finding(tmp_path: Path) -> None:
    """Each container has the server that its command starts."""
    needs_compose()
    write(tmp_path, HEALTHY)
    project = Project(tmp_path)
    assert findings(project) + project.not_checked == []
    servers = {it.name: (it.gunicorn is not None, it.uvicorn is not None) for it in project.containers}
    assert servers == {
        "edge": (False, False),
        "web": (True, False),
        "api": (False, True),
        "database": (False, False),
    }


@pytest.mark.parametrize(("file", "old", "new", "sentences"), BROKEN, ids=[case[3] for case in BROKEN])
def test_one_change_is_named(file: str, old: str, new: str, sentences: str, tmp_path: Path) -> None:
    """Every finding is about the change; each alternative of the sentence is found."""
    needs_compose()
    assert old in HEALTHY[file]
    write(tmp_path, HEALTHY | {file: HEALTHY[file].replace(old, new)})
    found = findings(Project(tmp_path))
    expected = sentences.split("|")
    assert [sentence for sentence in expected if not any(sentence in it for it in found)] == [], found
    assert [it for it in found if not any(sentence in it for sentence in expected)] == []


def test_every_rule_can_find_something(tmp_path: Path) -> None:
    """A setting that no server has is an error of the rule, not a rule that never finds anything."""
    with pytest.raises(KeyError, match="Gunicorn has no setting 'max_reqests'"):
        Settings("Gunicorn", {"max_requests": 0})["max_reqests"]
    assert len(CONTAINER_RULES) + len(PROJECT_RULES) > 30


@pytest.mark.parametrize(("files", "sentences"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_project_is_told_what_to_change(
    files: dict[str, str], sentences: list[str], tmp_path: Path
) -> None:
    """These findings and no other, from the files that are there."""
    write(tmp_path, files)
    if COMPOSE in files:
        needs_compose()
    found = findings(Project(tmp_path))
    assert len(found) == len(sentences), found
    assert [sentence for sentence in sentences if not any(sentence in finding for finding in found)] == []


@pytest.mark.parametrize("name", [COMPOSE, DOCKERFILE, GUNICORN, UVICORN])
def test_each_of_our_files_may_stand_alone(name: str, tmp_path: Path) -> None:
    """It is checked, the others are reported as missing, and there is nothing to find."""
    if name == COMPOSE:
        needs_compose()
    shutil.copy(ROOT / name, tmp_path)
    lines = doctor(tmp_path, 0)
    others = {COMPOSE, DOCKERFILE, GUNICORN, UVICORN} - {name}
    assert set(lines[:-1]) == {f"not checked: {other}: not here" for other in others}
    assert lines[-1].startswith("0 findings, ")
    assert not lines[-1].endswith("nothing to look at")


def test_make_checks_another_project(tmp_path: Path) -> None:
    """`make doctor DIR=...`, for a project without serving/."""
    write(tmp_path, {GUNICORN: "threads = 2\nworker_tmp_dir = '/dev/shm'\n"})
    output = run("make", "doctor", f"DIR={tmp_path}", expect=2)
    assert "gunicorn.conf.py: not here" not in output
    assert "Gunicorn's default: keepalive=2: must be longer" in output


def test_the_old_name_says_the_new_one() -> None:
    """`python -m serving.doctor` is replaced."""
    output = run(sys.executable, "-m", "serving.doctor", cwd=ROOT, expect=2)
    assert output.splitlines() == ["python -m checks.doctor replaces python -m serving.doctor"]


def test_what_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """Without Docker, without Gunicorn and Uvicorn, a line for each; findings make the exit code 1."""
    files = {name: HEALTHY[name] for name in (COMPOSE, GUNICORN, UVICORN)}
    write(tmp_path, files | {DOCKERFILE: 'FROM python\nUSER 1000\nCMD ["gunicorn", "app"]\n'})
    # -S: this Python without what is installed in it.
    bare = (sys.executable, "-S", "-m", "checks.doctor", str(tmp_path))
    lines = run(*bare, cwd=ROOT, env={"PATH": "/nowhere"}, expect=1).splitlines()
    assert lines[:-1] == [
        "Dockerfile: FROM=python: must name a release; change it to python:VERSION",
        "not checked: docker-compose.yml: no Docker Compose here to resolve it",
        "not checked: gunicorn.conf.py: Gunicorn is not installed here to resolve it",
        "not checked: uvicorn.json's keys: Uvicorn is not installed here",
    ]
    assert lines[-1].startswith("1 findings, ")


def test_the_environment_of_the_doctor_is_not_the_containers(tmp_path: Path) -> None:
    """WEB_CONCURRENCY and FORWARDED_ALLOW_IPS of this shell say nothing about the service."""
    needs_compose()
    write(tmp_path, HEALTHY)
    lines = doctor(tmp_path, 0, WEB_CONCURRENCY="99", FORWARDED_ALLOW_IPS="*")
    assert re.match("0 findings, ", lines[-1])


def test_the_name_of_the_project_makes_no_container_a_proxy(tmp_path: Path) -> None:
    """The image of a one-shot without a server begins with the project's name."""
    needs_compose()
    job = '  job: {image: "${COMPOSE_PROJECT_NAME}-web", restart: "no", command: [python, job.py]}\n'
    write(
        tmp_path / "proxy-edge",
        HEALTHY | {COMPOSE: HEALTHY[COMPOSE].replace("\nservices:\n", f"\nservices:\n{job}")},
    )
    assert [it.name for it in Project(tmp_path / "proxy-edge").containers if it.is_proxy] == ["edge"]
