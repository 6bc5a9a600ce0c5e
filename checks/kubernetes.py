"""The Kubernetes manifests of a project, as `kubectl kustomize` renders them; checks/doctor.py judges them.

Each overlay is read as a project of its own whose pods have the terms of Compose, so that the doctor's rules
apply to them as to the Compose file. The rules below compare what only Kubernetes has.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checks import variables
from checks.caddyfile import Caddyfile
from checks.project import Container, Project
from serving import health

# Seconds by which Kubernetes measures a probe that names none.
PROBE_TIMEOUT, PROBE_PERIOD = 1, 10
# PostgreSQL's default, and connections that are not an application's: migrations, backups, psql.
MAX_CONNECTIONS, RESERVED_CONNECTIONS = 100, 10
UNITS = {"m": 0.001, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
# How a finding about a key of Compose names it here.
NAMES = {
    ".stop_grace_period=": ".terminationGracePeriodSeconds - preStop=",
    ".healthcheck.start_period=": ".startupProbe.periodSeconds x failureThreshold=",
    ".healthcheck=": ".startupProbe=",
    ".tmpfs./tmp.size=": ".emptyDir.sizeLimit of /tmp=",
    ".deploy.resources.limits.": ".resources.limits.",
    ".read_only=": ".readOnlyRootFilesystem=",
    ".cap_drop=": ".capabilities.drop=",
    ".cap_add=": ".capabilities.add=",
    ".security_opt=[]: must be [no-new-privileges:true]": ".allowPrivilegeEscalation=True: must be false",
}

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A Deployment, a Job or the like."""

    kind: str
    name: str
    manifest: Manifest
    file: str

    @property
    def template(self) -> Manifest:
        """The template of its pods."""
        template: Manifest = self.manifest["spec"].get("template", {})
        return template

    @property
    def pod(self) -> Manifest:
        """The specification of its pods."""
        return dict(self.template.get("spec") or {})

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its pods."""
        return dict(self.template.get("metadata", {}).get("labels") or {})

    @property
    def server(self) -> Manifest:
        """The container that serves."""
        return dict(self.pod["containers"][0])

    @property
    def runs_once(self) -> bool:
        """Whether its pods end."""
        return self.kind in ("Job", "CronJob")

    def is_selected_by(self, selector: Manifest) -> bool:
        """Whether these labels, which are not none, are all its pods'."""
        return bool(selector) and selector.items() <= self.labels.items()

    def describe(self, text: str) -> str:
        """`overlay: name.text`."""
        return f"{self.file}: {self.name}.{text}"


class Overlay(Project):
    """What one overlay renders."""

    def __init__(self, directory: Path, folder: Path, program: str) -> None:
        """`program` is the kubectl that renders `folder`."""
        self.folder = folder.relative_to(directory).as_posix()
        self.program = program
        self.manifests: list[Manifest] = []
        # Each container in the terms of Compose.
        self.services: dict[str, dict[str, Any]] = {}
        super().__init__(directory)
        # The name that a finding about a variable shows.
        self.env_file = folder / "kustomization.yaml"

    def of_kind(self, *kinds: str) -> list[Manifest]:
        """The manifests of these kinds."""
        return [it for it in self.manifests if it["kind"] in kinds]

    @property
    def workloads(self) -> list[Workload]:
        """Everything that starts pods."""
        found = self.of_kind("Deployment", "StatefulSet", "DaemonSet", "Job")
        return [Workload(it["kind"], it["metadata"]["name"], it, self.folder) for it in found]

    def read_compose(self, options: list[str]) -> dict[str, dict[str, Any]]:
        """Each container in the terms of Compose, by the name of its workload."""
        self.compose_file = self.folder
        self.manifests = self.render()
        services = self.services
        for workload in self.workloads:
            for number, container in enumerate(workload.pod["containers"]):
                name = f"{workload.name}.{container['name']}" if number else workload.name
                services[name] = self.definition(workload, container)
            for container in workload.pod.get("initContainers", []):
                started = self.definition(workload, container) | {"restart": "no"}
                services[f"{workload.name}.{container['name']}"] = started
        return services

    def render(self) -> list[Manifest]:
        """All manifests of the overlay. kubectl writes YAML, and reads it to print JSON."""
        found = _run(self.program, "kustomize", str(self.directory / self.folder))
        if not found.returncode:
            words = ("label", "--local", "--filename", "-", "--output", "json", "doctor=")
            found = _run(self.program, *words, text=found.stdout)
        if found.returncode:
            self.broken.append(f"{self.folder}: must be what kubectl accepts: {found.stderr.strip()}")
            return []
        text, manifests = found.stdout.strip(), []
        while text:
            manifest, end = json.JSONDecoder().raw_decode(text)
            manifests.append(manifest)
            text = text[end:].lstrip()
        return manifests

    def read_variables(self, options: list[str]) -> dict[str, str]:
        """The variables of all ConfigMaps that checks/variables.py knows."""
        data = {name: value for it in self.of_kind("ConfigMap") for name, value in it.get("data", {}).items()}
        return {name: data.get(name, "") for name in variables.VARIABLES}

    def read_services(self, services: dict[str, dict[str, Any]]) -> list[Container]:
        """A container for each of them."""
        return [
            Container(name, self.folder, definition, self.stage(definition.get("build") or {}))
            for name, definition in services.items()
        ]

    def read_stack(self, options: list[str]) -> list[Container]:
        """None: a stack is compared with the Compose file alone."""
        return []

    def read_caddyfile(self) -> Caddyfile | None:
        """The edge's files, without a variable that only the replicas of Compose need."""
        found = super().read_caddyfile()
        if found and self.edge and self.edge.environment.get("EDGE_UPSTREAMS") == "kubernetes":
            found.unset.pop("COMPOSE_PROJECT_NAME", None)
        return found

    def environment_files(self) -> dict[str, str]:
        """None: Kubernetes reads no .env file."""
        return {}

    def definition(self, workload: Workload, container: Manifest) -> dict[str, Any]:
        """A container as a service of Compose."""
        security = {**workload.pod.get("securityContext", {}), **container.get("securityContext", {})}
        limits = container.get("resources", {}).get("limits", {})
        capabilities = security.get("capabilities", {})
        grace = workload.pod.get("terminationGracePeriodSeconds", 30)
        hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        startup = container.get("startupProbe", {})
        seconds = startup.get("periodSeconds", PROBE_PERIOD) * startup.get("failureThreshold", 3)
        command = container.get("command", []) + container.get("args", [])
        definition = {
            "image": container["image"],
            "command": [word.replace("$", "$$") for word in command],
            "environment": self.environment(container),
            "user": str(security.get("runAsUser", "")),
            "read_only": security.get("readOnlyRootFilesystem"),
            "cap_drop": capabilities.get("drop"),
            "cap_add": capabilities.get("add"),
            "security_opt": ["no-new-privileges"]
            if security.get("allowPrivilegeEscalation") is False
            else [],
            "privileged": security.get("privileged"),
            "stop_grace_period": f"{grace - hook}s",
            "restart": "no" if workload.runs_once else "always",
            # The kubelet limits both, by its own configuration.
            "logging": {"options": {"max-size": "kubelet"}},
            "deploy": {"resources": {"limits": {"pids": "kubelet"}}},
            "volumes": self.temporary_folders(workload, container),
            "ports": self.published_ports(workload),
        }
        # Empty where the limit is missing.
        definition["deploy"]["resources"]["limits"] |= {
            "cpus": quantity(limits.get("cpu", "0")) or None,
            "memory": int(quantity(limits.get("memory", "0"))) or None,
        }
        if startup:
            definition["healthcheck"] = {"test": ["kubelet"], "start_period": f"{seconds}s", "retries": 0}
        if stage := self.stage_of(container["image"]):
            definition["build"] = {"context": str(self.directory), "target": stage}
        return definition

    def stage_of(self, image: str) -> str:
        """The stage of the Dockerfile that this image is built from, by its name; "" for another image."""
        try:
            text = (self.directory / "Dockerfile").read_text(encoding="utf-8")
        except OSError:
            return ""
        stages = re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE)
        name = re.split("[@:]", image.rpartition("/")[2])[0]
        return max((it for it in stages if name == it or name.endswith(f"-{it}")), key=len, default="")

    def environment(self, container: Manifest) -> dict[str, str]:
        """Its variables; those of a Secret are not known."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            wanted = source.get("configMapRef", {}).get("name")
            maps = [it for it in self.of_kind("ConfigMap") if it["metadata"]["name"] == wanted]
            found |= {name: value for it in maps for name, value in it.get("data", {}).items()}
        found |= {it["name"]: it["value"] for it in container.get("env", []) if "value" in it}
        return {name: value.replace("$", "$$") for name, value in found.items()}

    def temporary_folders(self, workload: Workload, container: Manifest) -> list[dict[str, Any]]:
        """Its folders in memory as volumes of Compose."""
        empty = {it["name"]: it["emptyDir"] for it in workload.pod.get("volumes", []) if "emptyDir" in it}
        found = []
        for mount in container.get("volumeMounts", []):
            volume = empty.get(mount["name"], {})
            if volume.get("medium") == "Memory":
                size = int(quantity(volume.get("sizeLimit", "0")))
                found.append({"type": "tmpfs", "target": mount["mountPath"], "tmpfs": {"size": size}})
        return found

    def published_ports(self, workload: Workload) -> list[dict[str, Any]]:
        """The ports of it that other machines reach."""
        return [
            {"target": port.get("targetPort", port["port"]), "published": port["port"]}
            for service in self.of_kind("Service")
            if service["spec"].get("type") in ("LoadBalancer", "NodePort")
            and workload.is_selected_by(service["spec"].get("selector") or {})
            for port in service["spec"]["ports"]
        ]

    @property
    def servers(self) -> list[Workload]:
        """The workloads that serve and whose images this project builds, unlike a cache's."""
        return [it for it in self.workloads if self.container_of(it).is_long_running]

    def container_of(self, workload: Workload) -> Container:
        """The container of a workload that serves."""
        return next(it for it in self.containers if it.name == workload.name)


def _run(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    # Without a cluster: nothing here may ask one.
    alone = {"KUBECONFIG": "/dev/null"}
    return subprocess.run(command, input=text, capture_output=True, text=True, env=alone)


def quantity(text: object) -> float:
    """A quantity of Kubernetes such as 500m or 512Mi; 0 for anything else."""
    found = re.fullmatch(r"([\d.]+)(m|[KMG]i|[kMG]|)", str(text))
    return float(found[1]) * UNITS[found[2]] if found else 0


def overlays(directory: Path) -> tuple[list[Overlay], str]:
    """The overlays in deploy/kubernetes, and why they cannot be read."""
    folders = sorted(
        path.parent for path in directory.glob("deploy/kubernetes/overlays/*/kustomization.yaml")
    )
    program = kubectl()
    if folders and not program:
        return [], "deploy/kubernetes: no kubectl here to render it"
    return [Overlay(directory, folder, program) for folder in folders], ""


def kubectl() -> str:
    """The program, beside this Python or on the PATH; "" where there is none."""
    return shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl") or ""


def translated(overlay: Overlay, finding: str) -> str:
    """A finding of a rule for Compose with the keys of Kubernetes."""
    # The manifest, and not the image, says who the user is.
    finding = re.sub(r"^Dockerfile: (\S+)\.USER=", rf"{overlay.folder}: \1.runAsUser=", finding)
    for name, ours in NAMES.items():
        finding = finding.replace(name, ours)
    return finding


# Rules


RULES: list[Callable[[Overlay], Iterator[str]]] = []


def rule(function: Callable[[Overlay], Iterator[str]]) -> Callable[[Overlay], Iterator[str]]:
    """Apply this rule to every overlay."""
    RULES.append(function)
    return function


def problems(overlay: Overlay) -> Iterator[str]:
    """What must change."""
    for function in RULES:
        yield from function(overlay)


@rule
def probes(overlay: Overlay) -> Iterator[str]:
    """A pod starts with its dependencies. One that is away later takes no pod out, and restarts none."""
    for workload in overlay.servers:
        container = overlay.container_of(workload)
        started, ready = ("/livez",) * 2 if container.is_proxy else ("/readyz", "/readyz?once")
        wanted = {"startupProbe": started, "readinessProbe": ready, "livenessProbe": "/livez"}
        for name, path in wanted.items():
            probe = workload.server.get(name, {})
            given = probe.get("httpGet", {}).get("path")
            place = workload.describe(f"{name}.httpGet.path={given}")
            if given != path:
                yield f"{place}: must be {path}; change it to that"
            elif path != "/livez" and probe.get("timeoutSeconds", PROBE_TIMEOUT) <= health.CHECK_TIMEOUT:
                place = workload.describe(
                    f"{name}.timeoutSeconds={probe.get('timeoutSeconds', PROBE_TIMEOUT)}"
                )
                limit = f"serving/health.py: CHECK_TIMEOUT={health.CHECK_TIMEOUT:g}"
                yield f"{place}: must be longer than {limit}; change it to {health.CHECK_TIMEOUT + 2:g}"


@rule
def images(overlay: Overlay) -> Iterator[str]:
    """The image that a node pulls tomorrow is the one of today."""
    for workload in overlay.workloads:
        image = workload.server["image"]
        if "@" not in image and not re.search(r":[^/]*\d[^/]*$", image):
            place = workload.describe(f"image={image}")
            yield f"{place}: must name a digest or a version; change it in release/kustomization.yaml"


@rule
def restricted(overlay: Overlay) -> Iterator[str]:
    """The API server accepts the pods where the policy `restricted` is enforced, and they get no surprise."""
    for workload in overlay.workloads:
        security = workload.pod.get("securityContext", {})
        service_links = "false, because Kubernetes sets a variable such as EDGE_PORT for each Service"
        for key, value, must, good in (
            ("securityContext.runAsNonRoot", security.get("runAsNonRoot"), "true", True),
            (
                "securityContext.seccompProfile.type",
                security.get("seccompProfile", {}).get("type"),
                "RuntimeDefault",
                "RuntimeDefault",
            ),
            (
                "automountServiceAccountToken",
                workload.pod.get("automountServiceAccountToken"),
                "false, because no container asks the cluster",
                False,
            ),
            ("enableServiceLinks", workload.pod.get("enableServiceLinks"), service_links, False),
        ):
            if value != good:
                yield f"{workload.describe(f'{key}={value}')}: must be {must}; change it to that"


@rule
def replacement(overlay: Overlay) -> Iterator[str]:
    """A new pod is ready before an old one stops, and a drained node can stop one."""
    for workload in overlay.servers:
        rolling = workload.manifest["spec"].get("strategy", {}).get("rollingUpdate", {})
        value = rolling.get("maxUnavailable", "25%")
        if str(value) not in ("0", "0%"):
            yield f"{workload.describe(f'maxUnavailable={value}')}: must be 0; change it to that"
        for budget in overlay.of_kind("PodDisruptionBudget"):
            least = budget["spec"].get("minAvailable")
            replicas = workload.manifest["spec"].get("replicas", 1)
            if not workload.is_selected_by(budget["spec"]["selector"].get("matchLabels", {})):
                continue
            if str(budget["spec"].get("maxUnavailable")) in ("0", "0%") or least in (replicas, "100%"):
                fix = "must let one pod go, or no node can be drained; change it to maxUnavailable: 1"
                yield f"{workload.describe('PodDisruptionBudget')}: {fix}"


@rule
def resizing(overlay: Overlay) -> Iterator[str]:
    """A server whose limits are changed in place starts again, because it counts its workers at the start."""
    for workload in overlay.workloads:
        policies = {it["resourceName"]: it["restartPolicy"] for it in workload.server.get("resizePolicy", [])}
        for resource in ("cpu", "memory"):
            value = policies.get(resource, "NotRequired")
            needed = "NotRequired" if workload.runs_once else "RestartContainer"
            if (workload.runs_once or workload in overlay.servers) and value != needed:
                place = workload.describe(f"resizePolicy.{resource}={value}")
                yield f"{place}: must be {needed}; change it to that"


@rule
def trusted_edge(overlay: Overlay) -> Iterator[str]:
    """Applications trust the edges by a headless Service, which has also those that start or stop."""
    headless = {it["metadata"]["name"]: it["spec"] for it in overlay.of_kind("Service")}
    for workload in overlay.workloads:
        value = overlay.container_of(workload).environment.get("FORWARDED_ALLOW_IPS", "")
        for name in [it for it in value.split(",") if it in headless and not workload.runs_once]:
            place = workload.describe(f"FORWARDED_ALLOW_IPS={value}")
            if headless[name].get("clusterIP") != "None":
                fix = f"must name a Service with clusterIP: None, because {name} has an address of its own"
                yield f"{place}: {fix}; change one of them"
            elif not headless[name].get("publishNotReadyAddresses"):
                fix = f"must name a Service with publishNotReadyAddresses: true; change {name}"
                yield f"{place}: {fix}"


@rule
def one_version(overlay: Overlay) -> Iterator[str]:
    """Migrations are those of the image that waits for them."""
    images = {it["image"] for workload in overlay.workloads for it in workload.pod["containers"]}
    for workload in overlay.workloads:
        for container in workload.pod.get("initContainers", []):
            if "migrate" in " ".join(container.get("command", [])):
                jobs = [it for it in overlay.workloads if it.runs_once]
                if not any(job.server["image"] == container["image"] for job in jobs):
                    place = workload.describe(f"{container['name']}.image={container['image']}")
                    yield f"{place}: must be the image of a Job that migrates; change one of them"
            if container["image"] not in images:
                place = workload.describe(f"{container['name']}.image={container['image']}")
                yield f"{place}: must be the image of a server; change one of them"


@rule
def unchanging_jobs(overlay: Overlay) -> Iterator[str]:
    """A changed variable changes no Job: the API server refuses to change one that exists."""
    for workload in overlay.workloads:
        for source in workload.server.get("envFrom", []) if workload.runs_once else []:
            if name := source.get("configMapRef", {}).get("name"):
                place = workload.describe(f"envFrom.configMapRef={name}")
                yield f"{place}: must not be there, because its name changes; change it to a Secret or env"


@rule
def database_connections(overlay: Overlay) -> Iterator[str]:
    """PostgreSQL has a connection for every thread, of all pods of the autoscaler and of one more.

    Each worker has one more for its readiness check.
    """
    scalers = {it["spec"]["scaleTargetRef"]["name"]: it for it in overlay.of_kind("HorizontalPodAutoscaler")}
    for workload in overlay.workloads:
        container = overlay.container_of(workload)
        # As the default, so that an overlay without an autoscaler is compared, too.
        scaler = scalers.get(workload.name, {"metadata": {}, "spec": {}})
        needs = {it["name"] for it in workload.server.get("env", [])} & {"DATABASE_URL"}
        if not needs or workload.runs_once or container.gunicorn is None or not container.workers:
            continue
        text = scaler["metadata"].get("annotations", {}).get("postgres-max-connections", MAX_CONNECTIONS)
        pods = scaler["spec"].get("maxReplicas", workload.manifest["spec"].get("replicas", 1))
        workers = int(container.workers.number)
        each = container.threads + 1
        needed = (pods + 1) * workers * each + RESERVED_CONNECTIONS
        if needed > int(text):
            count = f"({pods} + 1) x {workers} x {each} + {RESERVED_CONNECTIONS} = {needed}"
            fix = f"must be at least {count}; change it with PostgreSQL's max_connections, or maxReplicas"
            yield f"{workload.describe(f'postgres-max-connections={text}')}: {fix}"


@rule
def one_scaler(overlay: Overlay) -> Iterator[str]:
    """The number of pods is the autoscaler's or the manifest's, or each `apply` resets it."""
    names = {it["spec"]["scaleTargetRef"]["name"] for it in overlay.of_kind("HorizontalPodAutoscaler")}
    for workload in overlay.workloads:
        replicas = workload.manifest["spec"].get("replicas")
        if workload.name in names and replicas is not None:
            place = workload.describe(f"replicas={replicas}")
            yield f"{place}: must not be set next to a HorizontalPodAutoscaler; change it by removing it"
