"""How many worker processes fit: a pure function of workload, CPUs, memory and process ids.

The machine's cores are the wrong number inside a limited container, so the limits come from the
control groups: https://docs.kernel.org/admin-guide/cgroup-v2.html (`cpu.max`, `memory.max`,
`pids.max`) and, for version 1, `cpu.cfs_quota_us` and `memory.limit_in_bytes`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath

from serving import settings

MEBIBYTE = 1024 * 1024

# Workload -> the fewest workers; otherwise each CPU gets one (docs/choosing.md has measurements).
# Gunicorn replaces workers after a number of requests: of two, one serves meanwhile.
FEWEST = {"mixed": 2, "cpu": 2, "io": 2, "asyncio": 1}

# Without a CPU limit, a node with 80 cores would start 80 workers for each of its containers.
UNLIMITED_CAP = 12

# More workers than this on one machine are a typing error.
MAXIMUM = 512

# The kernel counts every thread as a process id. A worker has its main thread, the threads that
# serve, and those for probes, for checks and for name resolution; a child process may add some.
# gunicorn.conf.py sets them; 40 is what Starlette runs functions that are not coroutines in.
SERVING_THREADS = {"mixed": 6, "cpu": 3, "io": 18, "asyncio": 40}
OTHER_THREADS = 4
# Process ids for the parent, a health check and `docker exec`.
OTHER_PROCESSES = 16

# Version 1 says "no limit" with the largest multiple of a page below 2**63.
NO_MEMORY_LIMIT = 2**60


@dataclass(frozen=True)
class Sizing:
    """A worker count and, in `reason`, the arithmetic that led to it."""

    workers: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """What this process may use: CPUs (a fraction counts), bytes of memory and process ids, or None."""

    cpus: float
    memory: int | None
    cpu_limited: bool
    pids: int | None = None


def plan(workload: str, available: Limits, worker_memory: int) -> Sizing:
    """The workers for `workload` (a key of FEWEST) under `available`; at least one.

    `worker_memory` is what one worker needs, in bytes. A fraction of a CPU counts as a whole one.
    """
    fewest = FEWEST[workload]
    count = max(fewest, ceil(available.cpus))
    reason = f"{workload}: {available.cpus:g} CPU, at least {fewest} = {count}"
    if available.memory is not None:
        fit = max(1, available.memory // worker_memory)
        reason += f", memory {available.memory // MEBIBYTE} / {worker_memory // MEBIBYTE} MiB = {fit}"
        count = min(count, fit)
    if not available.cpu_limited:
        reason += f", at most {UNLIMITED_CAP} without a CPU limit"
        count = min(count, UNLIMITED_CAP)
    if available.pids is not None:
        threads = SERVING_THREADS[workload]
        fit = fitting(available.pids, threads)
        if fit < count:
            reason += f", pids ({available.pids} - {OTHER_PROCESSES}) / {threads + OTHER_THREADS} = {fit}"
            count = fit
    return Sizing(count, reason)


def fitting(pids: int, threads: int) -> int:
    """How many workers with so many threads that serve have room in `pids`; at least one."""
    return max(1, (pids - OTHER_PROCESSES) // (threads + OTHER_THREADS))


def check(name: str, count: int, threads: int, available: Limits) -> None:
    """Raise SettingError unless `count` workers are possible; `name` is where the number is from."""
    if not 1 <= count <= MAXIMUM:
        settings.refuse(name, count, f"a whole number from 1 to {MAXIMUM}")
    if available.pids is not None and count > (fit := fitting(available.pids, threads)):
        reason = f"each has {threads + OTHER_THREADS} threads, and pids.max is {available.pids}"
        settings.refuse(name, count, f"at most {fit}: {reason}")


def limits(root: Path = Path("/")) -> Limits:
    """This process's limits, read below `root`; a value that is unreadable or absurd is no limit."""
    try:
        machine = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS
        machine = float(os.cpu_count() or 1)
    quotas = [*_cpu_quotas(root)]
    memory = [*_memory_limits(root)]
    pids = [*_pid_limits(root)]
    return Limits(min([machine, *quotas]), min(memory, default=None), bool(quotas), min(pids, default=None))


def workers(
    *, workload: str | None = None, configured: int | None = None, available: Limits | None = None
) -> Sizing:
    """The sizing for this start: WEB_CONCURRENCY, otherwise `configured` (by a file), otherwise computed.

    `workload` overrides the WORKLOAD variable, `available` what this process's control groups say.
    Raises SettingError for a wrong variable.
    """
    # Read first: a fixed number of workers must not hide a typing error in these.
    name = settings.choice("WORKLOAD", tuple(FEWEST), "mixed")
    # Generous: docs/choosing.md says what a worker of each application takes at rest.
    memory = settings.integer("WORKER_MEMORY_MB", 128, minimum=16, maximum=1_048_576)
    if chosen := web_concurrency():
        return Sizing(chosen, "WEB_CONCURRENCY")
    if configured:
        return Sizing(configured, "configuration file")
    return plan(workload or name, available or limits(), memory * MEBIBYTE)


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


def _pid_limits(root: Path) -> Iterator[int]:
    for group in _groups(root, "pids"):
        limit, *_ = _numbers(group / "pids.max") or (0,)
        if limit > 0:
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
