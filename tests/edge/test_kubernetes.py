"""The pods of Kubernetes as containers: the settings of deploy/kubernetes, without a cluster.

What the kubelet does with them is not tested here: probes, init containers, volumes and policies.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.kubernetes import Overlay, Workload, kubectl
from tests.support.commands import ROOT, RUN, free_port, poll, run
from tests.support.containers import Containers

SETTINGS = ("user", "read_only", "cap_drop", "cap_add", "environment", "volumes", "stop_grace_period")


def overlay(directory: Path) -> Overlay:
    """`production` with certificates from elsewhere."""
    shutil.copytree(ROOT / "deploy", directory / "deploy")
    folder = directory / "deploy/kubernetes/overlays/production"
    file = folder / "kustomization.yaml"
    assert "  # - ../../certificate\n" in file.read_text()
    file.write_text(file.read_text().replace("# - ../../certificate", "- ../../certificate"))
    return Overlay(directory, folder, kubectl())


def certificate(directory: Path, hosts: list[str]) -> None:
    """What a Secret of the type kubernetes.io/tls contains, for all services."""
    names = ",".join(f"DNS:{host}" for host in hosts)
    files = ("-keyout", directory / "tls.key", "-out", directory / "tls.crt")
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2")
    run(*request, "-addext", f"subjectAltName={names}", *files, stderr=-3)
    (directory / "tls.key").chmod(0o644)


def service(manifests: Overlay, workload: Workload, image: str, files: Path) -> dict:
    """The container of a pod that serves, for Compose."""
    definition = manifests.services[workload.name]
    found = {key: definition[key] for key in SETTINGS if definition.get(key)}
    volumes = {it["name"]: it for it in workload.pod["volumes"]}
    for mount in workload.server["volumeMounts"]:
        volume = volumes[mount["name"]]
        if "persistentVolumeClaim" in volume or volume.get("emptyDir", {}).get("medium") != "Memory":
            path = str(files / mount["name"])
            kind = {"type": "bind", "source": path} if "subPath" in mount or "secret" in volume else None
            target = {"target": mount["mountPath"], "read_only": mount.get("readOnly", False)}
            found["volumes"] = found["volumes"] + [(kind or {"type": "volume"}) | target]
    limits = definition["deploy"]["resources"]["limits"]
    selected = [
        it["metadata"]["name"]
        for it in manifests.of_kind("Service")
        if workload.is_selected_by(it["spec"]["selector"])
    ]
    sysctls = workload.pod["securityContext"].get("sysctls", [])
    return found | {
        "image": image,
        "security_opt": ["no-new-privileges:true"],
        "sysctls": {it["name"]: it["value"] for it in sysctls},
        "deploy": {"resources": {"limits": {"cpus": str(limits["cpus"]), "memory": str(limits["memory"])}}},
        "networks": {"default": {"aliases": selected}},
    }


@pytest.fixture(scope="module")
def pods(containers: Containers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """One container for each Deployment, in a network where each has the names of its Services."""
    directory = tmp_path_factory.mktemp("kubernetes")
    manifests = overlay(directory)
    deployments = [it for it in manifests.workloads if it.kind == "Deployment"]
    names = [it.name for it in deployments if it.name != "edge"]
    (directory / "tls").mkdir()
    hosts = {name: f"{name}.example.com" for name in names}
    certificate(directory / "tls", list(hosts.values()))
    config = next(it for it in manifests.of_kind("ConfigMap") if "certificate.caddy" in it["data"])
    (directory / "certificate").write_text(config["data"]["certificate.caddy"])
    services = {
        it.name: service(manifests, it, containers.services[it.name]["image"], directory)
        for it in deployments
    }
    port = free_port()
    services["edge"]["ports"] = [f"127.0.0.1:{port}:443"]
    file = directory / "pods.json"
    file.write_text(json.dumps({"services": services}))
    project = f"test-{os.environ[RUN]}-{secrets.token_hex(2)}"
    compose = ("docker", "compose", "--project-name", project, "--file", str(file))
    try:
        run(*compose, "up", "--detach", "--no-build")
        authority = directory / "tls/tls.crt"
        yield {"compose": compose, "port": port, "hosts": hosts, "authority": authority, "overlay": manifests}
    finally:
        run(*compose, "down", "--volumes", "--timeout", "5", expect=None)


def ask(pods: dict, host: str, path: str) -> int:
    """The status of a request through the edge; 0 while nothing answers."""
    address = ("--resolve", f"{host}:{pods['port']}:127.0.0.1", "--cacert", pods["authority"])
    command = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", *address)
    return int(run(*command, f"https://{host}:{pods['port']}{path}", expect=None)[-3:])


def logs(pods: dict) -> str:
    """What the containers printed."""
    return run(*pods["compose"], "logs", "--no-color")


def found(pods: dict, pattern: str) -> str:
    """What the first group matches in a line of the logs, as soon as there is one."""
    return poll(lambda: re.search(pattern, logs(pods), re.MULTILINE), log=lambda: logs(pods))[1]


def test_the_edge_finds_each_application_by_its_service(pods: dict) -> None:
    """On port 443, as user 10001, with the certificate of the Secret; an application trusts the edge."""
    for name, host in pods["hosts"].items():
        poll(lambda host=host: ask(pods, host, "/livez") == 200, 60, lambda: logs(pods))
        assert ask(pods, host, "/readyz") == 404
        assert ask(pods, host, f"/asked-{name}") in (404, 503)
        client, named = (
            found(pods, rf'^{it}-1 .*"client": ?"([^"]+)".*"path": ?"/asked-{name}"') for it in ("edge", name)
        )
        assert named == client, logs(pods)


def test_no_certificate_is_ordered(pods: dict) -> None:
    """Caddy uses what is loaded."""
    skipped = poll(
        lambda: re.findall(r"skipping automatic certificate management.*", logs(pods)), log=lambda: logs(pods)
    )
    assert len(skipped) == len(pods["hosts"])
    assert "acme" not in logs(pods)


def test_the_overlay_with_certificates_from_elsewhere_agrees(pods: dict) -> None:
    """Nothing is left of the volume of the edge."""
    claims = [it["metadata"]["name"] for it in pods["overlay"].of_kind("PersistentVolumeClaim")]
    assert "edge" not in claims
