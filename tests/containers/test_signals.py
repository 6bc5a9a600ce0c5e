"""A server that is process 1 of a container gets SIGTERM also while it imports the application."""

import json
import time
from pathlib import Path

import pytest

from tests.support.commands import poll, run
from tests.support.containers import Containers

SLOW = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"


@pytest.mark.slow
def test_sigterm_during_the_import_ends_a_container_without_init(
    place: tuple[Containers, str], tmp_path: Path
) -> None:
    """Immediately and with exit code 0; a process without a handler would not get the signal."""
    stack, service = place
    image = stack.services[service]["image"]
    command = json.loads(run("docker", "inspect", "--format", "{{json .Config.Cmd}}", image))
    if command[-1] == "serving.uvicorn":
        command.append("")
    (tmp_path / "slow.py").write_text(SLOW)
    tmp_path.chmod(0o755)
    mount = f"{tmp_path / 'slow.py'}:/app/slow.py:ro"
    name = f"{stack.project}-signals-{service}"
    run("docker", "run", "--detach", "--name", name, "--volume", mount, image, *command[:-1], "slow:app")
    try:
        poll(lambda: "importing" in run("docker", "logs", name), log=lambda: run("docker", "logs", name))
        begun = time.monotonic()
        run("docker", "stop", "--timeout", "30", name)
        assert time.monotonic() - begun < 8
        assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", name) == "0\n"
    finally:
        run("docker", "rm", "--force", name)
