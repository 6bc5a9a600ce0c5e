"""PostgreSQL in a container, from the package of this machine, for tests that need no registry."""

import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.commands import free_port, lacking, run

# A compose file's `command`: make the data directory at the first start, then serve.
START = (
    "[ -d /data/db ] || {binaries}/initdb -D /data/db -U app --auth trust >/dev/null; "
    "echo host all all all trust >>/data/db/pg_hba.conf; "
    "exec {binaries}/postgres -D /data/db -h 0.0.0.0 -k /tmp"
)


def postgres_service() -> dict:
    """A Compose service with a real PostgreSQL and a volume `database`; skips without a package."""
    found = [Path(shutil.which("initdb") or "/").parent, *Path("/usr/lib/postgresql").glob("*/bin")]
    binaries = next((path for path in reversed(found) if (path / "initdb").exists()), None)
    if binaries is None:
        lacking("no PostgreSQL server on this machine")
    image = f"tests-postgres:{binaries.parent.name}"
    if not run("docker", "image", "ls", "--quiet", image):
        make_image(image, binaries)
    return {
        "image": image,
        "command": ["/bin/sh", "-c", START.format(binaries=binaries)],
        "user": "nobody",
        "tmpfs": ["/tmp:mode=1777"],
        "volumes": ["database:/data"],
        "stop_signal": "SIGINT",
        "restart": "unless-stopped",
    }


@contextmanager
def published_postgres(address: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL on an address of this machine."""
    service, name, port = postgres_service(), f"test-{secrets.token_hex(4)}", free_port()
    options = ("--name", name, "--publish", f"{address}:{port}:5432", "--user", service["user"])
    options += ("--tmpfs", *service["tmpfs"])
    run("docker", "run", "--detach", *options, service["image"], *service["command"])
    try:
        yield f"postgres://app@{address}:{port}/postgres"
    finally:
        run("docker", "rm", "--force", name)


def make_image(image: str, binaries: Path) -> None:
    """Pack the package's files, and the libraries that they need, at the places of this machine."""
    programs = [binaries / "initdb", binaries / "postgres", Path("/bin/sh"), *binaries.glob("../lib/*.so")]
    libraries = set(re.findall(r"(?m)(/\S+) \(0x", run("ldd", *programs, expect=None)))
    share = Path("/usr/share/postgresql", binaries.parent.name)
    files = [binaries.parent, share, "/bin/sh", "/etc/passwd", "/usr/share/zoneinfo/UTC", *sorted(libraries)]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "data").mkdir()  # the volume takes its owner from here
        owner = ("--owner=nobody", "--group=nogroup", "--dereference")
        archive = ("tar", "--create", *owner, "--directory", "/", *map(str, files), "--directory", directory)
        with subprocess.Popen([*archive, "data"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
            run("docker", "import", "-", image, stdin=tar.stdout)
