"""`make dev`: what is edited is served at once, by the same servers, as confined as they are."""

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, answers, poll
from tests.support.containers import WRITE, Clone, Containers, inside, server_process
from tests.support.processes import EDITS, SWITCHES, Processes, processes_of

pytestmark = pytest.mark.slow


class Dev:
    """`make dev` in a copy of the repository, in a terminal of its own."""

    def __init__(self, stack: Clone | Processes, terminal: Path) -> None:
        self.stack = stack
        self.terminal = terminal
        with terminal.open("w") as output:
            self.process = subprocess.Popen(
                ["make", "dev", f"RUNTIME={stack.runtime}"],
                cwd=stack.directory,
                env=stack.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # In the background, a shell has its programs ignore Ctrl-C, and so would make.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def log(self) -> str:
        """What the terminal shows."""
        return self.terminal.read_text()

    def shows(self, service: str, path: str, check: Callable[[str], bool]) -> float:
        """Poll until the check is true of what the service answers, or of ""; the seconds that took."""

        def true() -> bool:
            try:
                answer = httpx2.get(self.stack.urls[service] + path, trust_env=False, timeout=2)
            except httpx2.HTTPError:
                return check("")
            return check(answer.text.lower() if answer.status_code == 200 else "")

        start = time.monotonic()
        poll(true, seconds=60, log=lambda: self.log()[-10_000:])
        return time.monotonic() - start

    def start(self, service: str) -> str:
        """What changes when the service's server is started again."""
        if isinstance(self.stack, Processes):
            return self.stack.control("pid", service)
        return self.stack.inspect(service, "{{.State.StartedAt}}")

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture(scope="module", params=["process", "docker"])
def dev(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """Every service under `make dev`; shared, so leave its files as they were."""
    directory = tmp_path_factory.mktemp("dev")
    if request.param == "docker":
        request.getfixturevalue("engine")
        stack: Clone | Processes = Clone(directory / "clone")
        stack.environ["COMPOSE_PROJECT_NAME"] = stack.project
    else:
        stack = Processes(directory / "clone")
    started = Dev(stack, directory / "terminal.log")
    try:
        for url in stack.urls.values():
            poll(lambda url=url: answers(url), seconds=120, log=started.log)
        yield started
    finally:
        if started.process.poll() is None:
            started.interrupt()
        stack.down()


def test_edited_code_is_served(dev: Dev) -> None:
    """Of every service, also when the second edit follows at once."""
    for service in dev.stack.urls:
        name, shown, addition = EDITS[service]
        file = dev.stack.directory / name
        original = file.read_text()
        dev.shows(service, "/", lambda page: bool(page) and "edited" not in page)
        assert original.count(shown) == 1
        file.write_text(original.replace(shown, shown + addition))
        there = dev.shows(service, "/", lambda page: "edited" in page)
        file.write_text(original)
        gone = dev.shows(service, "/", lambda page: bool(page) and "edited" not in page)
        print(f"{dev.stack.runtime} {service}: {there:.1f} s, and back {gone:.1f} s")


@pytest.mark.parametrize(("error", "line"), [("SyntaxError", "("), ("NameError", "unknown")])
def test_an_error_is_shown_and_the_next_edit_heals(dev: Dev, error: str, line: str) -> None:
    """The terminal has the traceback, with the line of the file; no server ends, or starts again."""
    for service in dev.stack.urls:
        file = dev.stack.directory / EDITS[service][0]
        original = file.read_text()
        before, start = len(dev.log()), dev.start(service)
        file.write_text(f"{original}\n{line}\n")
        broken = f'{EDITS[service][0]}", line {original.count("\n") + 2}'
        poll(lambda before=before: f"{error}: " in dev.log()[before:], 60, dev.log)
        assert broken in dev.log()[before:]
        file.write_text(original)
        healed = dev.shows(service, "/", bool)
        print(f"{dev.stack.runtime} {service}: healed in {healed:.1f} s")
        assert dev.start(service) == start


def test_what_is_broken_from_the_start_is_shown_and_heals(tmp_path: Path) -> None:
    """`make dev` waits for no server to be ready: that would hide why it is not, and end it."""
    stack = Processes(tmp_path / "clone")
    names = {EDITS[name][0] for name in stack.urls}
    # Migrations run before the servers, and would not with the models broken.
    names = names - {EDITS["django"][0]} | {"wsgi_app/django_site/wsgi.py"}
    originals = {stack.directory / name: (stack.directory / name).read_text() for name in names}
    for file, original in originals.items():
        file.write_text(f"{original}\nunknown\n")
    dev = Dev(stack, tmp_path / "terminal.log")
    try:
        poll(lambda: dev.log().count("NameError: name 'unknown'") == len(names), 60, dev.log)
        for file, original in originals.items():
            file.write_text(original)
        for url in stack.urls.values():
            poll(lambda url=url: answers(url), log=dev.log)
    finally:
        dev.interrupt()
        stack.down()


def test_edited_templates_and_static_files_of_django_are_served(dev: Dev) -> None:
    """As they are on disk, without collectstatic."""
    site = dev.stack.directory / "wsgi_app/django_site"
    for name, path in (("templates/guestbook.html", "/"), ("static/guestbook.css", "/static/guestbook.css")):
        original = (site / name).read_text()
        dev.shows("django", path, lambda text: bool(text) and "edited" not in text)
        (site / name).write_text(original + "/* edited */")
        took = dev.shows("django", path, lambda text: "edited" in text)
        print(f"{dev.stack.runtime} {name}: {took:.1f} s")
        (site / name).write_text(original)


def test_nothing_but_code_and_switches_differs(engine: None) -> None:
    """`make dev` runs the services that `docker compose up` runs, which knows nothing of it."""
    stack = Containers()
    plain = stack.config()["services"]
    stack.files += ["--file", str(ROOT / "deploy/dev.yml")]
    for name, service in stack.config()["services"].items():
        code = [mount for mount in service.get("volumes", []) if mount["type"] == "bind"]
        assert all(mount["read_only"] for mount in code)
        assert bool(code) == (name in EDITS)
        service["volumes"] = [mount for mount in service.get("volumes", []) if mount not in code]
        service["environment"] = dict(service["environment"].items() - SWITCHES.items())
        if code:
            assert service["environment"].pop("DRAIN_SECONDS") == "0", "Ctrl-C must not wait"
            del plain[name]["environment"]["DRAIN_SECONDS"]
        assert service == {"volumes": []} | plain[name]


@pytest.mark.parametrize("dev", ["docker"], indirect=True)
def test_the_root_stays_read_only_and_the_command_is_the_same(dev: Dev) -> None:
    """No file of the container can be written, nor one of the working copy."""
    assert isinstance(dev.stack, Clone)
    for service in dev.stack.urls:
        code = f"/app/{EDITS[service][0].partition('/')[0]}"
        assert inside(dev.stack, service, WRITE, "/app", code, "/tmp") == dict.fromkeys(
            ["/app", code], errno.EROFS
        )
        command = json.loads(dev.stack.inspect(service, "{{json .Config.Cmd}}"))
        assert server_process(dev.stack, service)["Arguments"] == command


def test_ctrl_c_ends_every_server(dev: Dev) -> None:
    """The last one here: nothing runs any more, and data stays."""
    dev.interrupt()
    if isinstance(dev.stack, Clone):
        assert not dev.stack.compose("ps", "--quiet")
    else:
        poll(lambda: not processes_of(dev.stack.directory), log=dev.log)
