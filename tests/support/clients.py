"""Clients that ask while a test does something else."""

import threading
from typing import Self


class Clients:
    """Threads that run from the beginning of a `with` block until `done` is set at its end."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()
