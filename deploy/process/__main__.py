"""`python -m deploy.process COMMAND`: process mode, which `make up` uses without an engine.

up      start every service, wait until all are ready, print their addresses
dev     the same with the switches of deploy/dev.env; show the logs until Ctrl-C, then stop
down    stop every service
logs    follow the logs
run     become the server of one service; supervisor calls this
manage  run a Django command
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from deploy.process import environment

ROOT = Path(__file__).parents[2]
RUN = ROOT / ".run"
SOCKET = RUN / "supervisor.sock"
# Bytes; a limit of the kernel, see unix(7).
LONGEST_SOCKET_PATH = 107

GUNICORN = ("serving.gunicorn",)
# Service -> the module and the arguments of its server.
SERVERS: dict[str, tuple[str, ...]] = {
    "django": (*GUNICORN, "wsgi_app.django_site.wsgi"),
    "flask": (*GUNICORN, "wsgi_app.flask_site"),
    "fastapi": ("serving.uvicorn",),
}
# FASTAPI_TARGET -> another server for fastapi, and its workload.
HYBRID = (*GUNICORN, "--worker-class", "serving.uvicorn.worker.Worker", "asgi_app.main:app")


def server_command(service: str, variables: dict[str, str]) -> tuple[str, ...]:
    """What follows `python -m` for this service; changes `variables` where the image would."""
    if service == "fastapi" and variables.get("FASTAPI_TARGET") == "fastapi-hybrid":
        variables["WORKLOAD"] = "asyncio"
        return HYBRID
    return SERVERS[service]


def control(*arguments: str) -> int:
    """Call supervisorctl; its exit code."""
    program = ROOT / ".venv/bin/supervisorctl"
    return subprocess.call([program, "-c", "deploy/process/supervisord.conf", *arguments], cwd=ROOT)


def supervisor_answers() -> bool:
    """Whether supervisor runs already."""
    program = ROOT / ".venv/bin/supervisorctl"
    command = [program, "-c", "deploy/process/supervisord.conf", "pid"]
    return SOCKET.exists() and not subprocess.run(command, cwd=ROOT, capture_output=True).returncode


def up(switches: dict[str, str]) -> None:
    """Start what does not run yet, wait, print the addresses; stop everything if that fails."""
    if len(os.fsencode(SOCKET)) > LONGEST_SOCKET_PATH:
        sys.exit(f"{ROOT}: the path is too long: {SOCKET} must be at most {LONGEST_SOCKET_PATH} bytes")
    os.environ |= switches
    variables = environment.deployment(ROOT)
    addresses = {name: f"http://127.0.0.1:{variables[f'{name.upper()}_PORT']}" for name in SERVERS}
    RUN.mkdir(exist_ok=True)
    if not supervisor_answers():
        prepare_django()
        program = ROOT / ".venv/bin/supervisord"
        command = [program, "-c", "deploy/process/supervisord.conf"]
        subprocess.run(command, cwd=ROOT, env=variables, check=True)
    try:
        if control("start", "all"):
            sys.exit(1)
        for name, address in addresses.items():
            # With reloading on, a broken application shows its traceback and waits for an edit.
            if not switches:
                wait = ("-m", "serving.health", "--wait", "60", f"{address}/readyz")
                subprocess.run([sys.executable, *wait], cwd=ROOT, check=True)
            print(name, address, flush=True)
    except (SystemExit, KeyboardInterrupt, subprocess.CalledProcessError):
        subprocess.call(["tail", "-n", "20", *RUN.glob("*.log")])
        down()
        sys.exit(1)


def prepare_django() -> None:
    """Migrate the database and collect the static files, as the migrate service and the image do."""
    manage("migrate", "--noinput")
    manage("collectstatic", "--noinput", "--verbosity", "0")


def manage(*arguments: str) -> None:
    """Run a Django command; end with its exit code if it fails."""
    variables = environment.of_service(ROOT, "django")
    command = [sys.executable, "-m", "wsgi_app.django_site", *arguments]
    if code := subprocess.call(command, cwd=ROOT, env=variables):
        sys.exit(code)


def dev() -> None:
    """Restart with reloading, follow the logs until Ctrl-C, then stop."""
    down()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        up(environment.read(ROOT / "deploy/dev.env"))
        follow_logs()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        down()


def down() -> None:
    """Stop every service and supervisor itself; harmless when nothing runs."""
    if not supervisor_answers():
        SOCKET.unlink(missing_ok=True)
        return
    control("shutdown")
    while SOCKET.exists():
        time.sleep(0.2)


def follow_logs() -> None:
    """Show the end of each log and what is added to it."""
    subprocess.call(["tail", "-n", "100", "-F", *sorted(RUN.glob("*.log"))], cwd=ROOT)


def run(service: str) -> None:
    """Replace this process by the service's server."""
    variables = environment.of_service(ROOT, service)
    command = server_command(service, variables)
    os.execve(sys.executable, [sys.executable, "-m", *command], variables)


def main() -> None:
    """The command line."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m deploy.process",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("up", "dev", "down", "logs", "run", "manage"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    match options.command:
        case "up":
            up({})
        case "dev":
            dev()
        case "down":
            down()
        case "logs":
            follow_logs()
        case "run":
            run(*options.arguments)
        case "manage":
            manage(*options.arguments)


if __name__ == "__main__":
    main()
