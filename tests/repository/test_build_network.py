"""Images are built from a private package index whose certificate a private authority has signed."""

import functools
import hashlib
import http.server
import json
import shutil
import ssl
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import HOUSEKEEPING, ROOT, run
from tests.support.registry import certificate

BUILD = (
    "docker",
    "build",
    "--quiet",
    "--network",
    "host",
    "--target",
    "flask",
    "--no-cache-filter",
    "flask-build",
)


def make_wheel(folder: Path) -> Path:
    """A package with one module."""
    folder.mkdir(parents=True)
    wheel = folder / "private-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("private.py", "")
        file.writestr(
            "private-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: private\nVersion: 1.0\n"
        )
        file.writestr("private-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("private-1.0.dist-info/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """The address of an index over TLS, its certificate, and the only package there."""
    wheel = make_wheel(tmp_path / "index/simple/private")
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    public, secret = certificate(tmp_path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "index")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, secret)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/simple", public, wheel
    finally:
        server.shutdown()
        server.server_close()


def test_a_private_index_and_its_authority(
    engine: None, index: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """Without the authority the build fails; with it, it is in no image."""
    address, public, wheel = index
    copy = Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=HOUSEKEEPING))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (copy / "requirements/flask.txt").write_text(f"private==1.0 --hash=sha256:{digest}\n")
    command = (*BUILD, "--build-arg", f"PIP_INDEX_URL={address}")
    assert "exit code: 1" in run(*command, ".", cwd=copy, expect=1)
    # What Compose passes while BUILD_CA is not set.
    run(*command, "--secret", "id=ca,src=/dev/null", ".", cwd=copy, expect=1)
    image = run(*command, "--secret", f"id=ca,src={public}", ".", cwd=copy).strip()
    try:
        found = run("docker", "run", "--rm", image, "python", "-c", "import os, private; print(os.environ)")
        assert "/run/secrets" not in found
        listed = run("docker", "run", "--rm", image, "ls", "/run")
        assert "secrets" not in listed
    finally:
        run("docker", "rmi", image)


def test_each_variable_reaches_every_build(tmp_path: Path) -> None:
    """A line in .env is enough."""
    values = {"PYTHON_IMAGE": "mirror.example/python:3.14", "EDGE_IMAGE": "mirror.example/caddy:2.11"}
    values |= {"PIP_INDEX_URL": "https://pypi.example/simple", "BUILD_CA": "/etc/ca.pem"}
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    command = ("docker", "compose", "--env-file", tmp_path / ".env", "config", "--format", "json")
    project = json.loads(run(*command))
    assert project["secrets"]["ca"]["file"] == values.pop("BUILD_CA")
    builds = [service["build"] for service in project["services"].values() if "build" in service]
    assert len(builds) > 3
    for build in builds:
        assert build["args"] == values
        assert [secret["source"] for secret in build["secrets"]] == ["ca"]
