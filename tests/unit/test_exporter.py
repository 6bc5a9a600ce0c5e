"""How the exporter reads the workers' files."""

import threading
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from serving.metrics.exporter import counted


def test_a_file_that_is_just_being_made_is_waited_for(tmp_path: Path) -> None:
    """A scrape while a worker starts has the figures of all workers."""
    for slot in range(2):
        worker = MmapedDict(str(tmp_path / f"counter_{slot}.db"))
        worker.write_value(mmap_key("requests", "requests_total", (), (), "Requests"), 1.0, 0.0)
        worker.close()
    made = tmp_path / "counter_1.db"
    content = made.read_bytes()
    made.write_bytes(b"")
    threading.Timer(0.1, made.write_bytes, [content]).start()
    (family,) = counted(MultiProcessCollector(None, str(tmp_path)))
    assert family.samples[0].value == 2
