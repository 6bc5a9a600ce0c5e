"""A version replaces another one under load, and no request is lost."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.commands import ROOT, answers, poll, run
from tests.support.deployment import Deployment, Load

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def deployment(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Every service, two replicas of the first one."""
    stack = Deployment(tmp_path_factory.mktemp("deployment") / "repository")
    try:
        stack.compose("up", "--build", "--detach", "--wait", "--scale", f"{next(iter(stack.urls))}=2")
        yield stack
    finally:
        stack.down()


def test_a_new_version_and_the_way_back_lose_nothing(deployment: Deployment) -> None:
    """Every request is answered once, also by the old version on the new schema."""
    before = deployment.replicas()
    if "django" in deployment.urls:
        deployment.change_django()
    with Load(deployment) as load:
        deployment.make("deploy", "VERSION=1.0")
        new = deployment.replicas()
        deployment.make("rollback")
    print(load.report())
    assert load.failures == []
    received = deployment.received()
    assert {request: count for request, count in received.items() if count != 1} == {}
    assert load.sent.keys() == received.keys()
    if "django" in deployment.urls:
        posts = [request.split()[1] for request, service in load.sent.items() if service == "django"]
        assert deployment.guestbook_messages() == {
            identity: 1 for identity in posts if f"POST {identity}" in load.sent
        }
    assert load.codes.keys() <= {1001, 1012}
    assert max(load.absences, default=0) < 60
    before.pop("migrate-1", None)
    assert new == {name: image.replace(":latest", ":1.0") for name, image in before.items()}
    assert deployment.replicas() == before


def test_make_up_keeps_the_deployed_version(deployment: Deployment) -> None:
    """It builds nothing, although the sources have changed: the tag means what has been deployed."""
    deployment.make("deploy", "VERSION=2.0")
    running = {name: deployment.inspect(name, "{{.Id}} {{.Image}}") for name in deployment.urls}
    for source in deployment.directory.glob("*_app/**/*.py"):
        source.write_text(source.read_text() + "\nraise SystemExit('edited')\n")
    output = deployment.make("up", "RUNTIME=docker")
    after = {name: deployment.inspect(name, "{{.Id}} {{.Image}}") for name in deployment.urls}
    assert after == running, output
    assert "VERSION=2.0\n" in (deployment.directory / ".env").read_text()


def test_a_request_longer_than_the_grace_has_an_answer(deployment: Deployment) -> None:
    """A gateway timeout of the edge's; the server ends in time, after the application's shutdown."""
    answers: dict[str, int] = {}

    def ask(service: str) -> None:
        url = f"{deployment.urls[service]}/?id=aa{list(deployment.urls).index(service)}&slow=60"
        answers[service] = httpx2.get(url, trust_env=False, timeout=60).status_code

    clients = [threading.Thread(target=ask, args=[service]) for service in deployment.urls]
    for client in clients:
        client.start()
    try:
        arrived = {f"GET aa{number}" for number in range(len(clients))}
        poll(lambda: arrived <= deployment.received().keys(), log=deployment.log)
        deployment.compose("stop", *deployment.urls)
    finally:
        for client in clients:
            client.join()
    try:
        assert answers == dict.fromkeys(deployment.urls, 504)
        for service in deployment.urls:
            assert deployment.inspect(service, "{{.State.ExitCode}}") == "0", deployment.log(service)
            if service.startswith("fastapi"):
                poll(lambda service=service: "the lifespan has ended" in deployment.log(service))
    finally:
        deployment.compose("up", "--detach", "--wait", "--no-build", "--no-recreate", *deployment.urls)


@pytest.fixture(scope="module")
def single(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The edge and one service that needs no other, deployed."""
    # What is not ready soon, is called so soon.
    healthcheck = {"interval": "1s", "retries": 2, "start_period": "20s"}
    stack = Deployment(tmp_path_factory.mktemp("single") / "repository", healthcheck=healthcheck)
    name = list(stack.urls)[:2][-1]
    stack.urls = {name: stack.urls[name]}
    try:
        stack.up(name)
        yield stack
    finally:
        stack.down()


def test_images_built_once_are_deployed_elsewhere(single: Deployment, tmp_path: Path) -> None:
    """docker-compose.yml, .env and an engine that has the images: that serves them, and replaces them."""
    starts = ("docker save", "docker load", "docker compose up --detach --wait --no-build")
    lines = (ROOT / "docs/deploy.md").read_text().splitlines()
    save, load, up = [next(line for line in lines if line.startswith(start)) for start in starts]
    (name,), others = single.urls, single.config()["services"].keys() - single.urls.keys() - {"edge"}
    (tmp_path / ".env").write_text(f"COMPOSE_PROJECT_NAME={single.project}\n")
    shutil.copy(single.directory / "docker-compose.yml", tmp_path)
    single.compose("build")
    elsewhere = {"cwd": tmp_path, "env": single.environ | {"COMPOSE_FILE": "docker-compose.yml"}}
    run("sh", "-c", save, **elsewhere)
    single.down()
    run("sh", "-c", load, **elsewhere)
    try:
        run("sh", "-c", up, **elsewhere)
        assert answers(single.urls[name])
        run("docker", "compose", "rm", "--stop", "--force", *others, **elsewhere)
        image = single.replicas()[f"{name}-1"]
        run("docker", "tag", image, image.replace(":latest", ":next"))
        run("python3", ROOT / "deploy/rollout.py", "next", **elsewhere)
        assert single.replicas() == {f"{name}-1": image.replace(":latest", ":next")}
        assert answers(single.urls[name])
        assert "VERSION=next\nPREVIOUS_VERSION=latest\n" in (tmp_path / ".env").read_text()
    finally:
        single.down()
