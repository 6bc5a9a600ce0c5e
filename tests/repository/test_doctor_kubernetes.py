"""Each of the doctor's rules for Kubernetes: changed manifests have the findings that they should have."""

import shutil
from pathlib import Path

import pytest

from checks import kubernetes
from checks.doctor import findings
from tests.support.commands import ROOT

FILES = ("Dockerfile", "gunicorn.conf.py", "uvicorn.json", "serving", "deploy/edge", "deploy/kubernetes")
RESTART = "{resourceName: cpu, restartPolicy: RestartContainer}"
KEEP = "{resourceName: cpu, restartPolicy: NotRequired}"

# What stands in the file, what it becomes, and what a finding then says: several independent changes at a
# time, because each rendering takes a while.
BROKEN = {
    "container.yaml": [
        ("runAsUser: 10001", "runAsUser: 0", "flask.runAsUser=0: must not be root"),
        (
            "runAsNonRoot: true",
            "runAsNonRoot: false",
            "flask.securityContext.runAsNonRoot=False: must be true",
        ),
        ("RuntimeDefault", "Unconfined", "seccompProfile.type=Unconfined: must be RuntimeDefault"),
        ("drop: [ALL]", "drop: [KILL]", "flask.capabilities.drop=['KILL']: must be [ALL]"),
        (
            "readOnlyRootFilesystem: true",
            "privileged: true",
            "flask.readOnlyRootFilesystem=None: must be true",
        ),
        ("allowPrivilegeEscalation: false", "", "flask.allowPrivilegeEscalation=True: must be false"),
        (
            'limits: {cpu: "1", memory: 512Mi}',
            "limits: {memory: 200Mi}",
            "flask.resources.limits.cpus=None: m",
        ),
        ("automountServiceAccountToken: false", "", "flask.automountServiceAccountToken=None: must be false"),
        ("enableServiceLinks: false", "", "flask.enableServiceLinks=None: must be false"),
        (
            " 128Mi}",
            " 128Mi}",
            "flask.emptyDir.sizeLimit of /tmp=128m: must be at most half of flask.memory=200m",
        ),
    ],
    "application.yaml": [
        (
            "GracePeriodSeconds: 60",
            "GracePeriodSeconds: 30",
            "flask.terminationGracePeriodSeconds - preStop=30s",
        ),
        ("path: /livez", "path: /readyz", "flask.livenessProbe.httpGet.path=/readyz: must be /livez"),
        (
            "timeoutSeconds: 5",
            "timeoutSeconds: 1",
            "flask.readinessProbe.timeoutSeconds=1: must be longer than",
        ),
        (
            "failureThreshold: 60",
            "failureThreshold: 5",
            "flask.startupProbe.periodSeconds x failureThreshold=10s",
        ),
        ("maxUnavailable: 0", "maxUnavailable: 1", "flask.maxUnavailable=1: must be 0"),
        (RESTART, KEEP, "flask.resizePolicy.cpu=NotRequired: must be RestartContainer"),
    ],
    "edge.yaml": [
        (
            "GracePeriodSeconds: 60",
            "GracePeriodSeconds: 40",
            "edge.terminationGracePeriodSeconds - preStop=25s: mu",
        ),
        ("  publishNotReadyAddresses: true\n", "", "must name a Service with publishNotReadyAddresses: true"),
        (
            "add: [NET_BIND_SERVICE]",
            "add: [NET_ADMIN]",
            "edge.capabilities.add=['NET_ADMIN']: must be nothing",
        ),
        ("path: /livez", "path: /", "edge.readinessProbe.httpGet.path=/: must be /livez"),
    ],
    "django-migrate.yaml": [
        (
            "          image: django\n",
            "          image: other\n",
            "django.migrated.image=registry.example.com/",
        ),
        (
            "          envFrom",
            f"          resizePolicy: [{RESTART}]\n          envFrom",
            "must be NotRequired",
        ),
        ("image: other", "image: other", "django-migrate-1.0.image=other: must name a digest or a version"),
    ],
    "../base/django-migrate.yaml": [
        (
            "envFrom:\n",
            "envFrom:\n            - configMapRef: {name: deployment}\n",
            "django-migrate-1.0.envFrom.configMapRef=deployment-",
        ),
    ],
    "kustomization.yaml": [
        (
            "REQUEST_TIMEOUT=20",
            "REQUEST_TIMEOUT=60",
            "flask.terminationGracePeriodSeconds - preStop=60s: must be",
        ),
        (
            "MAX_BODY=1MiB",
            "MAX_BODY=100MiB",
            "flask.emptyDir.sizeLimit of /tmp=128m: must be at least 4 x MAX_BODY",
        ),
        ("DOMAIN=example.com", "DOMAIN=https://a.com", "kustomization.yaml: DOMAIN='https://a.com': must be"),
        (
            "      - EDGE_HTTP_PORT=80\n",
            "",
            "{$EDGE_HTTP_PORT}=: must be in deploy/kubernetes/overlays/small",
        ),
        (
            "UPSTREAMS=kubernetes",
            "UPSTREAMS=compose",
            "{$COMPOSE_PROJECT_NAME}=: must be in deploy/kubernetes",
        ),
        ("=edge-pods", "=edge", "flask.FORWARDED_ALLOW_IPS=edge: must name a Service with clusterIP: None"),
    ],
    "flask.yaml": [
        (
            "  selector: {app",
            "  type: NodePort\n  selector: {app",
            "flask.ports=0.0.0.0:8000:http: must be on loop",
        ),
    ],
    "../overlays/small/kustomization.yaml": [
        ("[../../base]", "[../../bas]", "overlays/small: must be what kubectl accepts: error: accumulating"),
    ],
    "../overlays/production/django.yaml": [
        (
            "maxReplicas: 5",
            "maxReplicas: 6",
            "django.postgres-max-connections=100: must be at least (6 + 1) x 2 x 7 + 10 = 108",
        ),
        ("maxUnavailable: 1", "maxUnavailable: 0", "django.PodDisruptionBudget: must let one pod go"),
    ],
    "../overlays/production/kustomization.yaml": [
        (
            "count: 2}",
            "count: 2}\n  - {name: flask, count: 3}",
            "flask.replicas=3: must not be set next to a Hor",
        ),
    ],
}


def project(directory: Path) -> Path:
    """A copy of what the doctor reads for Kubernetes."""
    for name in FILES:
        source, target = ROOT / name, directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return directory


@pytest.mark.parametrize("file", BROKEN)
def test_each_change_is_named(file: str, tmp_path: Path) -> None:
    """A finding says what was changed, in the terms of Kubernetes."""
    path = project(tmp_path) / "deploy/kubernetes/base" / file
    for old, new, _ in BROKEN[file]:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    folder = tmp_path / "deploy/kubernetes/overlays" / ("production" if "production" in file else "small")
    found = findings(kubernetes.Overlay(tmp_path, folder, kubernetes.kubectl()))
    assert [it for _, _, it in BROKEN[file] if not any(it in finding for finding in found)] == [], found


def test_without_kubectl_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is judged."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert kubernetes.overlays(ROOT) == ([], "deploy/kubernetes: no kubectl here to render it")


def test_a_service_of_another_image_is_its_owners(tmp_path: Path) -> None:
    """A cache has no /readyz, and may be replaced as it likes; the posture of its pods is not its choice."""
    base = project(tmp_path) / "deploy/kubernetes/base"
    (base / "cache.yaml").write_text("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: cache}
spec:
  selector: {matchLabels: {app: cache}}
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: cache}}
    spec: {containers: [{name: server, image: "valkey:9.1"}]}
""")
    file = base / "kustomization.yaml"
    file.write_text(file.read_text().replace("resources:\n", "resources:\n  - cache.yaml\n"))
    folder = tmp_path / "deploy/kubernetes/overlays/production"
    assert findings(kubernetes.Overlay(tmp_path, folder, kubernetes.kubectl())) == []
