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
from typing import Any

from deploy.process import environment
from deploy.process.servers import SERVICES, TARGETS
from serving import settings

ROOT = Path(__file__).parents[2]
RUN = ROOT / ".run"
SOCKET = RUN / "supervisor.sock"
# Bytes. The kernel's limit is 107 (see unix(7)), and supervisord first makes its socket with a dot and
# its process id, of up to seven digits, after the name.
LONGEST_SOCKET_PATH = 99
# Seconds: supervisord kills a server after stopwaitsecs (90), and needs a moment itself.
LONGEST_STOP = 100


def supervisor(program: str, *arguments: str, **options: Any) -> int:
    """Call supervisord or supervisorctl; its exit code."""
    command = [f".venv/bin/{program}", "--configuration", "deploy/process/supervisord.conf"]
    return subprocess.call([*command, *arguments], cwd=ROOT, **options)


def supervisor_answers() -> bool:
    """Whether supervisor runs already."""
    return SOCKET.exists() and not supervisor("supervisorctl", "pid", stdout=subprocess.DEVNULL)


def up(switches: dict[str, str]) -> None:
    """Start what does not run yet, wait, print the addresses; stop everything if that fails."""
    if len(os.fsencode(SOCKET)) > LONGEST_SOCKET_PATH:
        sys.exit(f"{ROOT}: the path is too long: {SOCKET} must be at most {LONGEST_SOCKET_PATH} bytes")
    os.environ |= switches
    variables = environment.deployment(ROOT)
    addresses = {name: f"http://127.0.0.1:{variables[f'{name.upper()}_PORT']}" for name in SERVICES}
    RUN.mkdir(exist_ok=True)
    if not supervisor_answers():
        prepare_django()
        code = supervisor("supervisord", env=variables)
        if code:
            sys.exit(code)
    try:
        if supervisor("supervisorctl", "start", "all"):
            sys.exit(1)
        for name, address in addresses.items():
            # With reloading on, a broken application shows its traceback and waits for an edit.
            if not switches:
                wait = ("-m", "serving.health", "--wait", "60", f"{address}/readyz")
                subprocess.run([sys.executable, *wait], cwd=ROOT, check=True)
            print(name, address, flush=True)
    except (SystemExit, KeyboardInterrupt, subprocess.CalledProcessError):
        down()
        show_logs("-n", "20")
        sys.exit(1)


def prepare_django() -> None:
    """Migrate the database and collect the static files, as the migrate service and the image do."""
    manage_django("migrate", "--noinput")
    manage_django("collectstatic", "--noinput", "--verbosity", "0")


def manage_django(*arguments: str) -> None:
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
    if supervisor_answers():
        supervisor("supervisorctl", "shutdown")
    deadline = time.monotonic() + LONGEST_STOP
    while supervisor_answers():
        if time.monotonic() > deadline:
            sys.exit(f"supervisord still runs after {LONGEST_STOP} s; see {RUN / 'supervisord.log'}")
        time.sleep(0.5)
    SOCKET.unlink(missing_ok=True)


def follow_logs() -> None:
    """Show the end of each log and what is added to it."""
    show_logs("-n", "100", "-F")


def show_logs(*options: str) -> None:
    """Call tail for all logs."""
    names = [str(path.relative_to(ROOT)) for path in sorted(RUN.glob("*.log"))]
    subprocess.call(["tail", *options, *names], cwd=ROOT)


def run(service: str) -> None:
    """Replace this process by the service's server."""
    variables = environment.of_service(ROOT, service)
    target = variables.get(f"{service.upper()}_TARGET") or service
    if target not in TARGETS:
        settings.refuse(f"{service.upper()}_TARGET", target, f"one of {', '.join(TARGETS)}")
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    command = TARGETS[target].split()
    os.execvpe(command[0], command, variables)


def main() -> None:
    """The command line."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m deploy.process",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command")
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
        case "manage":  # Django
            manage_django(*options.arguments)
        case unknown:
            parser.error(f"unknown command {unknown!r}")


if __name__ == "__main__":
    main()
