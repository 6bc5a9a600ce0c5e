"""Metrics for Prometheus, with METRICS=on: instruments of the workers, and a process that exports them.

instruments.py is in every worker, parent.py in the process that starts the workers, and exporter.py
is the process that answers /metrics, also when every worker hangs. docs/metrics.md lists the series.
"""

from importlib.util import find_spec
from types import ModuleType

from serving import settings

# Variables that a parent process sets for its workers: the directory of all files, and a slot.
DIRECTORY, SLOT = "PROMETHEUS_MULTIPROC_DIR", "METRICS_SLOT"


def enabled() -> bool:
    """METRICS, or the profile of Compose that starts Prometheus."""
    profiles = settings.text("COMPOSE_PROFILES").split(",")
    return settings.flag("METRICS") or "metrics" in profiles or "*" in profiles


def require_package() -> None:
    """Raise SettingError without prometheus-client."""
    if find_spec("prometheus_client") is None:
        settings.refuse("METRICS", "on", "off, because the package prometheus-client is not installed")


def load() -> ModuleType | None:
    """The instruments, or None with METRICS=off: then nothing of this is imported."""
    if not enabled():
        return None
    require_package()
    from serving.metrics import instruments

    return instruments
