"""What a server's exporter answers."""

from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.support.commands import free_port, poll
from tests.support.servers import Server


class Figures:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples with this name and these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def values(self, name: str, label: str) -> set[str]:
        """The values of a label of the samples with this name."""
        return {sample.labels[label] for sample in self.samples if sample.name == name}

    def names(self) -> set[str]:
        """All names."""
        return {sample.name for sample in self.samples}


class Measured(Server):
    """A server with METRICS=on."""

    def __init__(self, *command: str, **environ: str) -> None:
        self.exporter_port = free_port()
        super().__init__(*command, METRICS="on", METRICS_PORT=str(self.exporter_port), **environ)

    def scrape(self) -> Figures:
        """What the exporter answers now."""
        url = f"http://127.0.0.1:{self.exporter_port}/metrics"
        return Figures(httpx2.get(url, trust_env=False, timeout=5).raise_for_status().text)

    def wait(self, path: str = "/livez") -> Any:
        """Return when the server and the exporter answer."""
        super().wait(path)
        poll(lambda: self.exporter() and self.answers(), log=self.log)
        return self

    def answers(self) -> bool:
        """Whether the exporter does."""
        try:
            self.scrape()
        except httpx2.TransportError:
            return False
        return True

    def children(self) -> dict[int, list[bytes]]:
        """The server's processes, and their command lines."""
        pid = self.process.pid
        found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return {child: arguments(child) for child in found}

    def exporter(self) -> int:
        """The process id of the exporter; 0 if there is none."""
        return next((pid for pid, words in self.children().items() if b"serving.metrics" in words), 0)

    def workers(self) -> set[int]:
        """The process ids of the workers."""
        return {
            pid
            for pid, words in self.children().items()
            if b"serving.metrics" not in words and b"resource_tracker" not in b" ".join(words)
        }

    def directory(self) -> Path:
        """Where the workers' files are."""
        return Path(arguments(self.exporter())[3].decode())


def arguments(pid: int) -> list[bytes]:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
