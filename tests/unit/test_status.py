"""The figures of `make status`."""

import pytest

from deploy import status

TEXT = """\
# HELP http_server_request_duration_seconds Duration
# TYPE http_server_request_duration_seconds histogram
http_server_request_duration_seconds_bucket{http_route="/{a}",http_response_status_code="200",le="0.1"} 90.0
http_server_request_duration_seconds_bucket{http_route="/{a}",http_response_status_code="200",le="+Inf"} 90.0
http_server_request_duration_seconds_count{http_route="/{a}",http_response_status_code="200"} 90.0
http_server_request_duration_seconds_bucket{http_route="\\"} ",http_response_status_code="500",le="0.1"} 0.0
http_server_request_duration_seconds_bucket{http_route="\\"} ",http_response_status_code="500",le="+Inf"} 10.0
http_server_request_duration_seconds_count{http_route="\\"} ",http_response_status_code="500"} 10.0
http_server_request_duration_seconds_created{http_route="x",http_response_status_code="500"} 1.7e9
server_worker_memory_bytes{worker="1"} 5.24288e+07
server_worker_memory_bytes{worker="2"} 5.24288e+07
server_workers 2.0
"""
ROW = status.Row("web", 2, "1.0", "", "0")
NOTHING = status.parse("", ready=False)


def test_a_line_has_the_figures_of_all_replicas() -> None:
    """Rates are those between two readings; memory is the sum of all workers."""
    before = [status.parse(TEXT, ready=True), status.parse(TEXT, ready=False)]
    after = [status.parse(TEXT.replace("90.0", "180.0"), ready=True), before[1]]
    line = status.cells(ROW, before, after, seconds=3)
    assert line == ("web", "2", "1.0", "1/2", "30.0", "0.099 s", "0.0%", "200 MiB", "0")


def test_a_restarted_replica_counts_from_zero() -> None:
    """A counter that has become smaller is no negative rate, and a new replica has all of its own."""
    before = [status.parse(TEXT.replace("90.0", "1000.0"), ready=True)]
    after = [status.parse(TEXT, ready=True)] * 2
    line = status.cells(ROW, before, after, seconds=10)
    # 90 of the restarted one; 90 and 10 failed ones of the new one.
    assert (line[4], line[6]) == ("19.0", "5.3%")


def test_without_metrics_the_figures_are_missing() -> None:
    """They are a dash and not 0."""
    line = status.cells(ROW, [NOTHING], [NOTHING], seconds=1)
    assert line[3:7] == ("0/2", "-", "-", "-")


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ({}, None),
        ({0.1: 0, float("inf"): 0}, None),
        ({0.1: 100, float("inf"): 100}, 0.099),
        ({0.1: 50, 0.2: 100, float("inf"): 100}, 0.198),
        ({0.1: 50, float("inf"): 100}, 0.1),  # longer than the last bound: as Prometheus, that bound
    ],
)
def test_quantile(buckets: dict[float, float], expected: float | None) -> None:
    """As Prometheus' histogram_quantile computes it."""
    found = status.quantile(0.99, buckets)
    assert found == (pytest.approx(expected) if expected else None)


def test_columns_are_aligned() -> None:
    """Every column begins at the same place."""
    lines = status.table([("a",) * 9, ("longer",) * 9]).splitlines()
    assert lines[1].index("a", 1) == lines[2].index("longer", 1)
