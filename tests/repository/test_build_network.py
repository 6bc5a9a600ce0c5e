"""Images are built from a private package index whose certificate a private authority has signed."""

import functools
import hashlib
import http.server
import json
import shutil
import ssl
import tarfile
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


# The files of a source distribution, whose build requires the package `private`.
PYPROJECT = """
[build-system]
requires = ["private==1.0"]
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import shutil
import private

def build_wheel(directory, *_):
    return shutil.copy("sourced-1.0-py3-none-any.whl", directory).rpartition("/")[2]
"""


def make_wheel(folder: Path, name: str) -> Path:
    """A package with one module."""
    folder.mkdir(parents=True)
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        file.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return wheel


def make_source_distribution(folder: Path, sources: Path) -> Path:
    """The package `sourced` without a wheel."""
    make_wheel(sources, "sourced")
    (sources / "pyproject.toml").write_text(PYPROJECT)
    (sources / "backend.py").write_text(BACKEND)
    (sources / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: sourced\nVersion: 1.0\n")
    folder.mkdir(parents=True)
    with tarfile.open(folder / "sourced-1.0.tar.gz", "w:gz") as file:
        file.add(sources, "sourced-1.0")
    return folder / "sourced-1.0.tar.gz"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path, list[Path]]]:
    """The address of an index over TLS, its certificate, and the packages there."""
    packages = [
        make_wheel(tmp_path / "index/simple/private", "private"),
        make_source_distribution(tmp_path / "index/simple/sourced", tmp_path / "sources"),
    ]
    for package in packages:
        (package.parent / "index.html").write_text(f'<a href="{package.name}">{package.name}</a>')
    public, secret = certificate(tmp_path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "index")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, secret)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/simple", public, packages
    finally:
        server.shutdown()
        server.server_close()


def copy_that_requires(package: Path, copy: Path) -> Path:
    """A copy of the repository whose lock has this package alone."""
    shutil.copytree(ROOT, copy, ignore=HOUSEKEEPING)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    name = package.name.partition("-")[0]
    (copy / "requirements/flask.txt").write_text(f"{name}==1.0 --hash=sha256:{digest}\n")
    return copy


def test_a_private_index_and_its_authority(
    engine: None, index: tuple[str, Path, list[Path]], tmp_path: Path
) -> None:
    """Without the authority the build fails; with it, it is in no image."""
    address, public, (wheel, _) = index
    copy = copy_that_requires(wheel, tmp_path / "copy")
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


def test_a_requirement_without_a_wheel_is_built(
    engine: None, index: tuple[str, Path, list[Path]], tmp_path: Path
) -> None:
    """Pip builds it in an environment of its own: what only the build requires is not in the image."""
    address, public, (_, source_distribution) = index
    copy = copy_that_requires(source_distribution, tmp_path / "copy")
    options = ("--build-arg", f"PIP_INDEX_URL={address}", "--secret", f"id=ca,src={public}")
    image = run(*BUILD, *options, ".", cwd=copy).strip()
    try:
        find = (
            "from importlib.util import find_spec; print(*map(bool, map(find_spec, ('sourced', 'private'))))"
        )
        assert run("docker", "run", "--rm", image, "python", "-c", find) == "True False\n"
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
