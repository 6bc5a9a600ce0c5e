"""A second Docker engine on this machine, in a network namespace of its own: another node of a Swarm."""

import os
import secrets
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from tests.support.commands import lacking, last_lines, poll, run
from tests.support.containers import subnet

PID_FILE = Path("/var/run/docker.pid")


class SecondEngine:
    """An engine with its own containers, images and networks, from `with` to its end.

    `here` and `address` are the two ends of the link between the namespaces. Nothing else can be
    reached from there, so an image that is not loaded fails immediately instead of after a timeout.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can start a second engine")
        if not PID_FILE.exists():
            lacking(f"no engine of this machine has {PID_FILE}")
        self.name = f"test-{secrets.token_hex(3)}"
        network = subnet().removesuffix("/28").rpartition(".")
        self.here, self.address = (f"{network[0]}.{int(network[2]) + number}" for number in (1, 2))
        self.cleanup = ExitStack()

    def __enter__(self) -> Self:
        with self.cleanup as stack:
            # Short, because the paths of sockets are limited to 107 bytes.
            self.directory = Path(tempfile.mkdtemp(prefix="engine-"))
            stack.callback(shutil.rmtree, self.directory)
            self.link(stack)
            self.start(stack)
            self.cleanup = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.cleanup.close()

    def link(self, stack: ExitStack) -> None:
        """Make the namespace, with one link to this machine's; skip if the kernel has no VXLAN."""
        device = f"{self.name}-0"
        probe = ("ip", "link", "add", device, "type", "vxlan", "id", "1", "dstport", "0", "dev", "lo")
        if reason := run(*probe, expect=None):
            pytest.skip(f"no VXLAN, which networks over several nodes need: {reason.strip()}")
        run("ip", "link", "delete", device)
        run("ip", "netns", "add", self.name)
        stack.callback(run, "ip", "netns", "delete", self.name)
        inside = ("ip", "-netns", self.name)
        run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "address", "add", f"{self.here}/28", "dev", device)
        run("ip", "link", "set", device, "up")
        run(*inside, "address", "add", f"{self.address}/28", "dev", "eth0")
        for name in ("lo", "eth0"):
            run(*inside, "link", "set", name, "up")

    def start(self, stack: ExitStack) -> None:
        """Start the program of this machine's engine once more, with its variables, until it answers."""
        process = Path("/proc", PID_FILE.read_text().strip())
        variables = (process / "environ").read_text().split("\0")
        options = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        words = [f"--{name}={self.directory / path}" for name, path in options.items()]
        words += [f"--host=unix://{self.directory}/socket", f"--containerd-namespace={self.name}"]
        words += [f"--containerd-plugins-namespace={self.name}-plugins"]
        # Not `ip netns exec`, which hides /sys/fs/cgroup.
        enter = ("nsenter", f"--net=/run/netns/{self.name}")
        log = (self.directory / "log").open("w")
        stack.callback(log.close)
        stack.callback(self.release_networks)
        engine = subprocess.Popen(
            [*enter, (process / "exe").readlink(), *words],
            env=dict(line.partition("=")[::2] for line in variables if line),
            stdout=log,
            stderr=log,
        )
        stack.callback(engine.wait, 60)
        stack.callback(engine.terminate)
        poll(lambda: self.docker("info", expect=None).count("Server Version"), 60, self.recent_log)

    def connect(self, state: str) -> None:
        """Set the link between the engines `up` or `down`."""
        run("ip", "link", "set", f"{self.name}-0", state)

    def release_networks(self) -> None:
        """Unmount the namespaces of networks whose end the engine has not heard of."""
        for namespace in (self.directory / "exec/netns").glob("*"):
            run("umount", namespace, expect=None)

    def recent_log(self) -> str:
        """The end of the engine's log."""
        return last_lines((self.directory / "log").read_text())

    def docker(self, *words: str, expect: int | None = 0) -> str:
        """The output of a docker command for this engine."""
        return run("docker", "--host", f"unix://{self.directory}/socket", *words, expect=expect)

    def load(self, *images: str) -> None:
        """Copy images from the other engine, as no registry has them."""
        archive = self.directory / "images.tar"
        run("docker", "save", "--output", archive, *images)
        self.docker("load", "--input", str(archive))
        archive.unlink()
