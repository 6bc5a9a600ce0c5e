"""`make status` where no engine is; tests/containers has the containers."""

from tests.support.processes import PROGRAMS, Processes


def test_the_status_of_local_processes(processes: Processes) -> None:
    """Each service is ready, and without metrics the screen says how to switch them on."""
    lines = processes.make("status").splitlines()
    assert lines[0].split()[:4] == ["SERVICE", "REPLICAS", "VERSION", "READY"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1 : 1 + len(PROGRAMS)]}
    assert rows == {name: ["1", "-", "1/1", "-", "-", "-", "0"] for name in PROGRAMS}
    assert "write METRICS=on\nin .env, then run make down and make up" in "\n".join(lines)
