"""How many worker processes fit: a pure function of workload, CPUs and memory.

The machine's cores are the wrong number inside a limited container, so the limits come
from the control groups: https://docs.kernel.org/admin-guide/cgroup-v2.html (`cpu.max`,
`memory.max`) and, for version 1, `cpu.cfs_quota_us` and `memory.limit_in_bytes`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath

from serving import settings

MEBIBYTE = 1024 * 1024

# Workload -> (workers per CPU, workers on top). 2n for mixed and 2n+1 for cpu brought nothing over
# n+1 but memory (docs/choosing.md).
FORMULAS = {"mixed": (1, 1), "cpu": (1, 1), "io": (4, 1), "asyncio": (1, 0)}

# With neither a CPU nor a memory limit, an 80-core node would start 160 workers.
UNLIMITED_CAP = 12

# More workers than this on one machine are a typing error.
MAXIMUM = 512

# Version 1 says "no limit" with the largest multiple of a page below 2**63.
NO_MEMORY_LIMIT = 2**60


@dataclass(frozen=True)
class Sizing:
    """A worker count and, in `reason`, the arithmetic that led to it."""

    workers: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """What this process may use: CPUs (a fraction counts), memory in bytes or None."""

    cpus: float
    memory: int | None
    cpu_limited: bool


def plan(workload: str, limits: Limits, worker_memory: int) -> Sizing:
    """The workers for `workload` (a key of FORMULAS) under `limits`; at least one.

    `worker_memory` is what one worker needs, in bytes. A fraction of a worker is rounded up.
    """
    per_cpu, extra = FORMULAS[workload]
    wanted = max(1, ceil(per_cpu * limits.cpus + extra))
    reason = f"{workload}: {per_cpu} x {limits.cpus:g} CPU + {extra} = {wanted}"
    if limits.memory is not None:
        fit = max(1, limits.memory // worker_memory)
        reason += f", memory {limits.memory // MEBIBYTE} / {worker_memory // MEBIBYTE} MiB = {fit}"
    elif not limits.cpu_limited:
        fit = UNLIMITED_CAP
        reason += f", at most {fit} without a limit"
    else:
        fit = wanted
    return Sizing(min(wanted, fit), reason)


def limits(root: Path = Path("/")) -> Limits:
    """This process's limits, read below `root`; unreadable or absurd values count as no limit."""
    try:
        machine = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS
        machine = float(os.cpu_count() or 1)
    quotas = [*_cpu_quotas(root)]
    memory = [*_memory_limits(root)]
    return Limits(min([machine, *quotas]), min(memory, default=None), bool(quotas))


def workers(*, workload: str | None = None, configured: int | None = None) -> Sizing:
    """The sizing for this start: WEB_CONCURRENCY, else `configured` (a file's), else computed.

    `workload` overrules the WORKLOAD variable. Raises SettingError for a wrong variable.
    """
    chosen = web_concurrency()
    if chosen:
        return Sizing(chosen, "WEB_CONCURRENCY")
    if configured:
        return Sizing(configured, "configuration file")
    name = settings.choice("WORKLOAD", tuple(FORMULAS), "mixed")
    # A worker of the applications here takes 19 to 46 MiB at rest (PSS); a grown one, more.
    memory = settings.integer("WORKER_MEMORY_MB", 128, minimum=16, maximum=1_048_576) or 128
    return plan(workload or name, limits(), memory * MEBIBYTE)


def web_concurrency() -> int | None:
    """WEB_CONCURRENCY, or None when unset. Raises SettingError for a wrong value."""
    return settings.integer("WEB_CONCURRENCY", None, minimum=1, maximum=MAXIMUM)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        version_1 = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        numbers = _numbers(group / "cpu.max") or version_1
        if len(numbers) == 2 and min(numbers) > 0:
            yield numbers[0] / numbers[1]


def _memory_limits(root: Path) -> Iterator[int]:
    for group in _groups(root, "memory"):
        limit, *_ = _numbers(group / "memory.max") or _numbers(group / "memory.limit_in_bytes") or (0,)
        if 0 < limit < NO_MEMORY_LIMIT:
            yield limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Every group from this process's own up to the mount: a limit on any of them binds.

    Inside a container the path may be the host's; then only the mount itself exists.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controller if controllers else mount
        own = PurePosixPath(path.lstrip("/"))
        if ".." not in own.parts:
            yield from (base / group for group in (own, *own.parents) if group != PurePosixPath("."))
    yield from (mount, mount / controller)


def _numbers(path: Path) -> tuple[int, ...]:
    """The file's whole numbers, or () when it is missing or holds anything else ("max")."""
    try:
        numbers = tuple(int(word) for word in _read(path).split())
    except ValueError:
        return ()
    # The kernel's own are 64 bits wide.
    return numbers if all(abs(number) < 2**63 for number in numbers) else ()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
