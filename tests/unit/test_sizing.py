"""The number of workers: a pure function of workload, CPUs and memory, never of the bare machine."""

import os
import runpy
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from serving import settings, sizing
from serving.sizing import MEBIBYTE, Limits, plan
from tests.support.commands import ROOT

MEMORY = 128 * MEBIBYTE
ABSURD = 10**400

# More than any limit below, so that what is found is the limit.
MACHINE = 64


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with MACHINE CPUs, all of them ours."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MACHINE)), raising=False)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable that decides about workers."""
    for name in ("WEB_CONCURRENCY", "WORKLOAD", "WORKER_MEMORY_MB"):
        monkeypatch.delenv(name, raising=False)


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """The files below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        ("mixed", (2, 2, 2, 2, 4)),
        ("cpu", (2, 2, 2, 2, 4)),
        ("io", (2, 2, 2, 2, 4)),
        ("asyncio", (1, 1, 2, 2, 4)),
    ],
)
def test_each_cpu_gets_a_worker(workload: str, expected: tuple[int, ...]) -> None:
    """A fraction counts as a whole one; where requests have threads, there are at least two workers."""
    cpus = (0.5, 1, 1.5, 2, 4)
    assert expected == tuple(plan(workload, Limits(n, None, True), MEMORY).workers for n in cpus)


@pytest.mark.parametrize("workload", ["", "mixed", " CPU", "io"])
def test_process_ids_are_counted_for_the_threads_that_gunicorn_starts(
    workload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number stands in gunicorn.conf.py, where people change it, and again beside the sizing."""
    monkeypatch.setenv("WORKLOAD", workload)
    threads = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["threads"]
    assert threads == sizing.SERVING_THREADS[workload.strip().lower() or "mixed"]


@pytest.mark.parametrize(
    ("expected", "limits"),
    [
        (4, Limits(5, 512 * MEBIBYTE, True)),
        (3, Limits(5, 512 * MEBIBYTE - 1, True)),
        (1, Limits(4, 1, True)),
        (4, Limits(4, 1024**5, True)),
        (12, Limits(80, None, False)),
        (2, Limits(2, None, False)),
        (80, Limits(80, None, True)),
        (12, Limits(80, 80 * MEMORY, False)),
        (10, Limits(80, 10 * MEMORY, False)),
        (3, Limits(4, None, True, 100)),
        (1, Limits(4, None, True, 10)),
        (4, Limits(4, None, True, 256)),
    ],
)
def test_memory_binds_and_a_cap_stands_in_for_a_missing_limit(expected: int, limits: Limits) -> None:
    """As many as memory and process ids allow, at least one; at most twelve without a CPU limit."""
    assert expected == plan("io", limits, MEMORY).workers


def test_the_reason_shows_the_arithmetic() -> None:
    """The log has what is needed to check the number."""
    expected = "mixed: 1.5 CPU, at least 2 = 2, memory 128 / 128 MiB = 1"
    assert sizing.Sizing(1, expected) == plan("mixed", Limits(1.5, 128 * MEBIBYTE, True), MEMORY)
    expected = "asyncio: 8 CPU, at least 1 = 8, at most 12 without a CPU limit, pids (256 - 16) / 44 = 5"
    assert sizing.Sizing(5, expected) == plan("asyncio", Limits(8, None, False, 256), MEMORY)


@pytest.mark.parametrize("count", [0, 513, 9])
def test_a_number_of_workers_that_is_impossible_is_refused(count: int) -> None:
    """In one place, for every server and wherever the number is from."""
    available = Limits(4, None, True, 100)
    with pytest.raises(settings.SettingError, match=f"^--workers={count}: must be "):
        sizing.check("--workers", count, 6, available)
    sizing.check("--workers", 8, 6, available)
    sizing.check("--workers", 512, 6, Limits(4, None, True))


V2 = "sys/fs/cgroup"
V1 = {"proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n1:name=systemd:/docker/x\n0::/\n"}
CPU, RAM = "sys/fs/cgroup/cpu", "sys/fs/cgroup/memory"
NONSENSE = (
    b"",
    b"\xff\xfe\x00",
    b"lots of them",
    b"100000",
    b"-5 100000",
    b"5 0",
    b"0 0",
    b"1 2 3",
    b"1.5 1",
)


@pytest.mark.parametrize(
    ("cpus", "memory", "files"),
    [
        pytest.param(None, None, {}, id="no control groups at all"),
        pytest.param(None, None, {"proc/self/cgroup": "0::/app"}, id="v2: no files"),
        pytest.param(
            0.5,
            512,
            {"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "50000 100000\n", f"{V2}/a/memory.max": "512\n"},
            id="v2: a fraction",
        ),
        pytest.param(
            None,
            None,
            {"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "max 100000\n", f"{V2}/a/memory.max": "max\n"},
            id="v2: max",
        ),
        pytest.param(
            1,
            300,
            {
                "proc/self/cgroup": "0::/a/b/c\n",
                f"{V2}/a/cpu.max": "100000 100000",
                f"{V2}/a/b/cpu.max": "max 100000",
                f"{V2}/a/b/memory.max": "300",
                f"{V2}/a/b/c/cpu.max": "400000 100000",
                f"{V2}/a/b/c/memory.max": "900",
            },
            id="v2: parents bind",
        ),
        pytest.param(
            1.5,
            300,
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/cpu.max": "400000 100000",
                f"{V2}/a/memory.max": "900",
                f"{V2}/a/b/cpu.max": "150000 100000",
                f"{V2}/a/b/memory.max": "300",
            },
            id="v2: the own group binds",
        ),
        pytest.param(
            2,
            512,
            {
                "proc/self/cgroup": "0::/host/docker/x",
                f"{V2}/cpu.max": "20000 10000",
                f"{V2}/memory.max": "512",
            },
            id="v2: the path is the host's",
        ),
        pytest.param(
            2,
            512,
            {
                "proc/self/cgroup": "0::/../x",
                "sys/fs/x/cpu.max": "10000 10000",
                f"{V2}/cpu.max": "20000 10000",
                f"{V2}/memory.max": "512",
            },
            id="v2: the path leads out of the namespace",
        ),
        pytest.param(
            2,
            512,
            {"proc/self/cgroup": b"\xff\x00\n:::", f"{V2}/cpu.max": "2 1", f"{V2}/memory.max": "512"},
            id="v2: membership is nonsense",
        ),
        pytest.param(
            1.5,
            512,
            V1
            | {
                f"{CPU}/docker/x/cpu.cfs_quota_us": "150000\n",
                f"{CPU}/docker/x/cpu.cfs_period_us": "100000\n",
                f"{RAM}/docker/x/memory.limit_in_bytes": "512\n",
            },
            id="v1: the own group binds",
        ),
        pytest.param(
            0.5,
            512,
            V1
            | {
                f"{CPU}/docker/cpu.cfs_quota_us": "50000",
                f"{CPU}/docker/cpu.cfs_period_us": "100000",
                f"{CPU}/docker/x/cpu.cfs_quota_us": "-1",
                f"{CPU}/docker/x/cpu.cfs_period_us": "100000",
                f"{RAM}/docker/memory.limit_in_bytes": "512",
                f"{RAM}/docker/x/memory.limit_in_bytes": "9223372036854771712",
            },
            id="v1: parents bind",
        ),
        pytest.param(
            2,
            512,
            V1
            | {
                f"{CPU}/cpu.cfs_quota_us": "200000",
                f"{CPU}/cpu.cfs_period_us": "100000",
                f"{RAM}/memory.limit_in_bytes": "512",
            },
            id="v1: the path is the host's",
        ),
        pytest.param(
            None,
            None,
            V1
            | {
                f"{CPU}/cpu.cfs_quota_us": "-1",
                f"{CPU}/cpu.cfs_period_us": "100000",
                f"{RAM}/memory.limit_in_bytes": "9223372036854771712",
            },
            id="v1: unlimited",
        ),
        pytest.param(None, None, V1 | {f"{CPU}/cpu.cfs_quota_us": "200000"}, id="v1: no period"),
        *(pytest.param(None, None, {f"{V2}/cpu.max": text}, id=f"cpu.max is {text!r}") for text in NONSENSE),
        *(
            pytest.param(None, None, {f"{V2}/memory.max": text}, id=f"memory.max is {text!r}")
            for text in (b"0", b"-1", b"x")
        ),
        pytest.param(
            None, None, {f"{V2}/cpu.max": f"{ABSURD} 100000", f"{V2}/memory.max": f"{ABSURD}"}, id="absurd"
        ),
    ],
)
def test_the_tightest_control_group_counts(
    cpus: float | None, memory: int | None, files: dict, machine: None, tmp_path: Path
) -> None:
    """A group's limit or any of its parents', version 1 or 2; what can not be understood is no limit."""
    assert Limits(cpus or MACHINE, memory, cpus is not None) == sizing.limits(write(tmp_path, files))


def test_process_ids_are_limited_by_the_tightest_group(machine: None, tmp_path: Path) -> None:
    """Version 2 and version 1, the own group and its parents."""
    files = {"proc/self/cgroup": "0::/a/b", f"{V2}/a/pids.max": "200", f"{V2}/a/b/pids.max": "max"}
    assert sizing.limits(write(tmp_path / "v2", files)).pids == 200
    files = {"proc/self/cgroup": "4:pids:/x\n", f"{V2}/pids/x/pids.max": "300"}
    assert sizing.limits(write(tmp_path / "v1", files)).pids == 300
    assert sizing.limits(tmp_path / "none").pids is None


def test_affinity_and_the_machine_bind_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A quota above the CPUs that may be used gives nothing."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    for quota, expected in (("400000", 3), ("300001", 3), ("200000", 2)):
        write(tmp_path, {f"{V2}/cpu.max": f"{quota} 100000"})
        assert expected == sizing.limits(tmp_path).cpus
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in ((1, 1), (None, 1), (4, 2)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert expected == sizing.limits(tmp_path).cpus


NUMBERS = st.integers(-ABSURD, ABSURD) | st.integers(-10, 10**12)
WORDS = st.lists(NUMBERS.map(str) | st.just("max"), max_size=2).map(" ".join).map(str.encode)
MEMBERSHIP = st.lists(
    st.tuples(
        st.sampled_from(("0::/", "1:cpu:/", "2:memory:/")),
        st.sampled_from(("", "a", "a/b", "../a", "a\0b", "\x85", "x" * 300)),
    ).map("".join)
).map(lambda lines: "\n".join(lines).encode())
NAMES = ("cpu.max", "memory.max", "cpu.cfs_quota_us", "cpu.cfs_period_us", "memory.limit_in_bytes")
PATHS = [
    f"{base}{name}" for base in ("", "a/", "a/b/", "cpu/", "cpu/a/", "memory/", "memory/a/") for name in NAMES
]


@hypothesis.settings(deadline=None, database=None)
@hypothesis.given(
    st.binary() | MEMBERSHIP, st.dictionaries(st.sampled_from(PATHS), st.binary() | WORDS, max_size=8)
)
def test_no_content_of_the_files_stops_a_start(membership: bytes, groups: dict[str, bytes]) -> None:
    """Whatever bytes they hold, there is at least one worker for every workload."""
    with tempfile.TemporaryDirectory() as directory:
        files = {f"{V2}/{name}": content for name, content in groups.items()}
        limits = sizing.limits(write(Path(directory), {"proc/self/cgroup": membership} | files))
    for workload in sizing.FEWEST:
        assert plan(workload, limits, MEMORY).workers >= 1


CPUS = st.floats(0.001, 1024)
BYTES = st.integers(1, 2**50)


@hypothesis.given(
    workload=st.sampled_from(sorted(sizing.FEWEST)),
    cpus=st.tuples(CPUS, CPUS).map(sorted),
    memory=st.tuples(BYTES, BYTES).map(sorted),
    limited=st.booleans(),
    worker=st.integers(16, 4096).map(lambda number: number * MEBIBYTE),
)
@hypothesis.settings(deadline=None, database=None)
def test_more_of_a_resource_never_means_fewer_workers(
    workload: str, cpus: list[float], memory: list[int], limited: bool, worker: int
) -> None:
    """Monotone in CPUs and in memory, at least one, and never more than memory holds."""

    def count(cpus: float, memory: int | None) -> int:
        return plan(workload, Limits(cpus, memory, limited), worker).workers

    for given in (*memory, None):
        assert 1 <= count(cpus[0], given) <= count(cpus[1], given)
    assert count(cpus[1], memory[0]) <= count(cpus[1], memory[1])
    for given in memory:
        assert count(cpus[1], given) <= max(1, given // worker)


def test_a_variable_overrules_the_file_and_the_file_the_arithmetic(
    unset: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WEB_CONCURRENCY > file > computed; an empty variable counts as unset."""
    assert plan("mixed", sizing.limits(), MEMORY) == sizing.workers()
    assert sizing.Sizing(7, "configuration file") == sizing.workers(configured=7)
    monkeypatch.setenv("WEB_CONCURRENCY", " ")
    assert sizing.workers(configured=7).workers == 7
    monkeypatch.setenv("WEB_CONCURRENCY", "5")
    assert sizing.Sizing(5, "WEB_CONCURRENCY") == sizing.workers(configured=7) == sizing.workers()


def test_workload_and_memory_per_worker_choose_the_arithmetic(
    unset: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WORKLOAD and WORKER_MEMORY_MB reach the formula; a server that knows its workload says so."""
    monkeypatch.setenv("WORKLOAD", "IO")
    monkeypatch.setenv("WORKER_MEMORY_MB", "64")
    assert plan("io", sizing.limits(), 64 * MEBIBYTE) == sizing.workers()
    assert plan("asyncio", sizing.limits(), 64 * MEBIBYTE) == sizing.workers(workload="asyncio")
    monkeypatch.setenv("WORKLOAD", "much")
    with pytest.raises(
        settings.SettingError, match="WORKLOAD='much': must be one of mixed, cpu, io, asyncio"
    ):
        sizing.workers()
