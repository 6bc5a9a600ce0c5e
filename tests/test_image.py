"""An image holds its application and its lock, nothing else, and is cheap to rebuild and to ship."""

import json
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import HOUSEKEEPING, ROOT, Containers, run

FRAMEWORKS = {"django", "flask", "fastapi"}
MEGABYTE = 1_000_000

INSTALLED = """
import importlib.metadata, json, os, platform, sys
version = ".".join(platform.python_version_tuple()[:2])
print(json.dumps({
    "distributions": {d.name: d.version for d in importlib.metadata.distributions()},
    "environment": {
        "implementation_name": sys.implementation.name,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_system": platform.system(),
        "python_full_version": platform.python_version(),
        "python_version": version,
        "sys_platform": sys.platform,
    },
}))
"""
FOUND = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""
TOOLS = """
import json, shutil, sys
print(json.dumps([name for name in sys.argv[1:] if shutil.which(name)]))
"""
# What the import system checks before it uses a .pyc: flags, and the source's time and size.
COMPILED = """
import importlib.util, json, pathlib, struct, sysconfig
current, missing = 0, []
for directory in ("/app", sysconfig.get_path("purelib")):
    for source in pathlib.Path(directory).rglob("*.py"):
        bytecode = pathlib.Path(importlib.util.cache_from_source(source))
        state = source.stat()
        expected = (0, int(state.st_mtime), state.st_size)
        if bytecode.exists() and struct.unpack("<4xIII", bytecode.read_bytes()[:16]) == expected:
            current += 1
        else:
            missing.append(str(source))
print(json.dumps([current, missing]))
"""


@dataclass
class Image:
    """An image as `docker save` writes it."""

    config: dict
    layers: list[list[tarfile.TarInfo]]
    base: int  # how many of the layers come from the base image

    @property
    def added(self) -> list[tarfile.TarInfo]:
        """What our layers add to the base image."""
        return [member for layer in self.layers[self.base :] for member in layer]


def layers(image: str) -> list[str]:
    """The digests of the image's layers."""
    return json.loads(run("docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", image))


def size(image: str) -> int:
    """Bytes, all layers together."""
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))


def target(stack: Containers, service: str) -> str:
    """The stage of the Dockerfile that the service runs."""
    return stack.services[service]["build"]["target"]


@pytest.fixture(scope="module")
def base(engine: None) -> Iterator[str]:
    """The Dockerfile's first stage: the base image, whatever it is, and not a byte of ours."""
    tag = f"test-{secrets.token_hex(4)}-base"
    run("docker", "build", "--target", "base", "--tag", tag, ".")
    yield tag
    run("docker", "rmi", tag)


@pytest.fixture(scope="module")
def images(
    containers: Containers, base: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Image]]:
    """Each service's image, layer by layer."""
    ids = {service: containers.inspect(service, "{{.Image}}") for service in containers.services}
    archive = tmp_path_factory.mktemp("images") / "images.tar"
    run("docker", "save", "--output", archive, *ids.values())
    saved = {}
    with tarfile.open(archive) as tar:
        for entry in json.load(tar.extractfile("manifest.json")):
            config = json.load(tar.extractfile(entry["Config"]))
            contents = []
            for name in entry["Layers"]:
                with tarfile.open(fileobj=tar.extractfile(name)) as layer:
                    contents.append(layer.getmembers())
            saved[tuple(config["rootfs"]["diff_ids"])] = Image(config, contents, len(layers(base)))
    archive.unlink()
    return {service: saved[tuple(layers(image))] for service, image in ids.items()}


def test_image_installs_exactly_its_lock(containers: Containers) -> None:
    """An image has the locked distributions in the locked versions, and no other."""
    for service in containers.urls:
        actual = json.loads(containers.exec(service, "python", "-c", INSTALLED))
        lock = ROOT / "requirements" / f"{target(containers, service)}.txt"
        pins = (
            Requirement(line.rstrip(" \\")) for line in lock.read_text().splitlines() if re.match(r"\w", line)
        )
        expected = {
            canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
            for pin in pins
            if not pin.marker or pin.marker.evaluate(actual["environment"])
        }
        installed = {canonicalize_name(name): number for name, number in actual["distributions"].items()}
        assert installed == expected, service


def test_image_holds_one_framework_and_its_server(containers: Containers) -> None:
    """No image carries another application's framework, server or code."""
    for service in containers.urls:
        own = target(containers, service)
        sites = {"wsgi_app.django_site", "wsgi_app.flask_site", "asgi_app"}
        expected = {"fastapi", "uvicorn", "asgi_app"} if own == "fastapi" else {own, "gunicorn", f"wsgi_app.{own}_site"}
        names = FRAMEWORKS | {"gunicorn", "uvicorn"}
        assert set(json.loads(containers.exec(service, "python", "-c", FOUND, *names))) == expected, service
