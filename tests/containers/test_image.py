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

from tests.support.commands import HOUSEKEEPING, ROOT, run
from tests.support.containers import Containers, inside
from tests.support.processes import PROGRAMS

MEGABYTE = 1_000_000
# Target of the Dockerfile -> the servers in its image.
SERVERS = {
    "django": ["gunicorn"],
    "flask": ["gunicorn"],
    "fastapi": ["uvicorn"],
    "fastapi-hybrid": ["gunicorn", "uvicorn"],
}

# Framework -> what its images hold beside serving/.
OWN = {
    "django": {"gunicorn.conf.py", "wsgi_app/django_site"},
    "flask": {"gunicorn.conf.py", "wsgi_app/flask_site"},
    "fastapi": {"gunicorn.conf.py", "uvicorn.json", "asgi_app"},
}
# Folders that the build makes.
MADE = {"__pycache__", "staticfiles"}

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
IMPORTABLE = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))
"""
ON_PATH = """
import json, shutil, sys
print(json.dumps([name for name in sys.argv[1:] if shutil.which(name)]))
"""
# What the import system checks before it uses a .pyc: flags, and the source's time and size.
COMPILED = """
import importlib.util, json, pathlib, struct, sysconfig
current, stale = 0, []
for directory in ("/app", sysconfig.get_path("purelib")):
    for source in pathlib.Path(directory).rglob("*.py"):
        bytecode = pathlib.Path(importlib.util.cache_from_source(source))
        state = source.stat()
        expected = (0, int(state.st_mtime), state.st_size)
        if bytecode.exists() and struct.unpack("<4xIII", bytecode.read_bytes()[:16]) == expected:
            current += 1
        else:
            stale.append(str(source))
print(json.dumps([current, stale]))
"""
UNREADABLE = """
import json, os, pathlib
print(json.dumps([str(path) for path in pathlib.Path("/app").rglob("*") if not os.access(path, os.R_OK)]))
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


def matches(path: Path, pattern: str) -> bool:
    """Whether the pattern names the file or a folder above it."""
    return any(Path("/", candidate).match(f"/{pattern}") for candidate in (path, *path.parents))


def layers(image: str) -> list[str]:
    """The digests of the image's layers."""
    return json.loads(run("docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", image))


def size(image: str) -> int:
    """Bytes, all layers together."""
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))


def target(place: tuple[Containers, str]) -> str:
    """The stage of the Dockerfile that the service runs."""
    stack, service = place
    return stack.services[service]["build"]["target"]


def build(directory: Path, name: str, tag: str) -> tuple[str, str]:
    """Build one stage; the image's name and the build's output."""
    image = f"{tag}-{name}"
    command = ("docker", "build", "--progress", "plain", "--target", name, "--tag", image, directory)
    return image, run(*command)


@pytest.fixture(scope="module")
def base(engine: None) -> Iterator[str]:
    """The Dockerfile's first stage: the base image, whatever it is, and not a byte of ours."""
    tag = f"test-{secrets.token_hex(4)}-base"
    run("docker", "build", "--target", "base", "--tag", tag, ".")
    yield tag
    run("docker", "rmi", tag)


@pytest.fixture(scope="module")
def images(containers: Containers, base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """Each service's image, layer by layer."""
    ids = {service: containers.inspect(service, "{{.Image}}") for service in PROGRAMS}
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


def test_image_installs_exactly_its_lock(place: tuple[Containers, str]) -> None:
    """An image has the locked distributions in the locked versions, and no other."""
    actual = inside(*place, INSTALLED)
    lock = ROOT / "requirements" / f"{target(place)}.txt"
    pins = (
        Requirement(line.rstrip(" \\")) for line in lock.read_text().splitlines() if re.match(r"\w", line)
    )
    expected = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if not pin.marker or pin.marker.evaluate(actual["environment"])
    }
    assert expected == {canonicalize_name(name): number for name, number in actual["distributions"].items()}


def test_image_holds_one_framework_and_its_servers(place: tuple[Containers, str]) -> None:
    """No image can import another application's framework or server, or pip."""
    found = set(inside(*place, IMPORTABLE, *PROGRAMS, "gunicorn", "uvicorn", "pip"))
    assert found == {place[1], *SERVERS[target(place)]}


def test_image_holds_only_its_application(images: dict[str, Image]) -> None:
    """Of the repository an image has its own application's files, and nothing else that lies beside them."""
    for service, image in images.items():
        expected = {"serving"} | OWN[service.partition("-")[0]]
        sources = set()
        for member in image.added:
            path = Path("/", member.name)
            if member.isfile() and path.is_relative_to("/app") and not MADE & {*path.parts}:
                sources.add(path.relative_to("/app"))
        for path in sources:
            assert (ROOT / path).is_file(), f"{service}: {path} is not in the repository"
        known = {path: {name for name in expected if matches(path, name)} for path in sources}
        assert [path for path, names in known.items() if not names] == [], service
        assert set().union(*known.values()) == expected, service


def test_image_has_no_compiler_and_no_downloader(place: tuple[Containers, str]) -> None:
    """An intruder finds no tool to build or to download others with."""
    tools = ("cc", "gcc", "g++", "c++", "clang", "make", "curl", "wget", "git")
    assert inside(*place, ON_PATH, "python", *tools) == ["python"]


def test_bytecode_is_compiled_and_current(place: tuple[Containers, str]) -> None:
    """A start compiles nothing: on a read-only root it would do so every time."""
    current, stale = inside(*place, COMPILED)
    assert stale == []
    assert current > 100


def test_no_layer_holds_a_secret(images: dict[str, Image]) -> None:
    """No key, password or database is in any layer, nor in the image's environment and history."""
    for service, image in images.items():
        names = {Path(member.name).name for layer in image.layers for member in layer}
        assert "settings.py" in names, service
        leaked = [name for name in names if re.fullmatch(r"secret_key|\.env(\..*)?|.*\.sqlite3(-\w+)?", name)]
        assert leaked == [], service
        values = re.findall(r"\w*(?:SECRET|PASSWORD|TOKEN)\w*=(\S+)", json.dumps(image.config))
        assert set(values) <= {"build"}, service


def test_the_key_of_django_is_shown_nowhere(containers: Containers) -> None:
    """Neither `docker inspect` nor a log has Django's key, and no variable carries a secret."""
    key = containers.exec("django", "cat", "/data/secret_key").strip()
    assert len(key) > 50
    for service in containers.services:
        shown = run("docker", "inspect", containers.container(service))
        assert key not in shown + containers.log(service)
        assert re.findall(r'"\w*(?:SECRET|PASSWORD|TOKEN|DATABASE)\w*=[^"]+"', shown) == []


def test_the_service_can_not_change_its_own_files(images: dict[str, Image]) -> None:
    """Even on a writable root, our layers add nothing that the user may write, and nothing setuid."""
    for service, image in images.items():
        assert len(image.added) > 100, service
        for member in image.added:
            owner = 10001 if member.name == "data" else 0
            assert (member.uid, member.gid) == (owner, owner), f"{service}: {member.name}"
            assert member.issym() or not member.mode & 0o6002, f"{service}: {member.name}"


def test_the_data_directory_is_empty(images: dict[str, Image]) -> None:
    """A new volume starts empty, and for its service alone."""
    for service, image in images.items():
        data = [member for member in image.added if member.name.split("/")[0] == "data"]
        assert [member.name for member in data] == ["data"], service
        assert (data[0].isdir(), data[0].mode) == (True, 0o700), service


def test_image_says_who_runs_what(images: dict[str, Image]) -> None:
    """A numeric user, the server itself as the command, and the version as a label."""
    for service, image in images.items():
        config = image.config["config"]
        assert config["User"] == "10001:10001", service
        assert not config.get("Entrypoint"), service
        assert config["Cmd"][:2] == ["python", "-m"], service
        assert config["Labels"]["org.opencontainers.image.version"], service


def test_image_is_small(place: tuple[Containers, str], base: str) -> None:
    """Each image adds less than 120 MB to its base image."""
    added = size(place[0].inspect(place[1], "{{.Image}}")) - size(base)
    print(f"{target(place)}: {added / MEGABYTE:.1f} MB over the base image")
    assert 1 < added / MEGABYTE < 120


@pytest.mark.slow
def test_a_code_change_ships_no_dependency(engine: None, tmp_path: Path) -> None:
    """Files beside the code change no image; an edit changes its last layer, without `pip install`."""
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=HOUSEKEEPING)
    tag = f"test-{secrets.token_hex(4)}"
    targets = list(SERVERS)
    beside = (".env", "serving/.env", ".data/secret_key", ".git/config", "README.md", "tests/test_x.py")
    module = copy / "serving/settings.py"
    # An edit before the first build too: for known sources the engine may take an older build's result.
    module.write_text(f"{module.read_text()}\nEDITED = '{tag}'\n")
    try:
        before = {name: layers(build(copy, name, f"{tag}-before")[0]) for name in targets}
        for name in beside:
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_text("x=1\n")
        for name in targets:
            assert layers(build(copy, name, f"{tag}-beside")[0]) == before[name], name
        module.write_text(f"{module.read_text()}\nEDITED = True\n")
        for name in targets:
            image, output = build(copy, name, f"{tag}-after")
            after = layers(image)
            assert after[:-1] == before[name][:-1], f"{name}\n{output}"
            assert after[-1] != before[name][-1], f"{name}\n{output}"
            steps = re.findall(r"^#(\d+) .*pip install", output, re.MULTILINE)
            assert steps, output
            for step in steps:
                assert f"#{step} CACHED" in output.splitlines(), output
    finally:
        tags = (f"{tag}-{state}-{name}" for state in ("before", "beside", "after") for name in targets)
        run("docker", "rmi", *tags, expect=None)


def test_a_private_checkout_builds_an_image_that_starts(engine: None, tmp_path: Path) -> None:
    """An image's user can read the application, whatever umask the repository was cloned with."""
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=HOUSEKEEPING)
    for path in copy.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    image = build(copy, next(iter(SERVERS)), f"test-{secrets.token_hex(4)}")[0]
    try:
        output = run("docker", "run", "--rm", image, "python", "-c", UNREADABLE)
        assert json.loads(output) == []
    finally:
        run("docker", "rmi", image)
