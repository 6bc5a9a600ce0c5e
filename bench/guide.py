"""Fill the marked regions of the pages from the checked-in results.

A region begins with `<!-- bench: NAME -->` and ends with `<!-- /bench -->`, each on its own line.
Everything outside the regions is written by hand. `make bench` ends with this module.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from bench import report
from bench.modes import ROOT

RESULTS = ROOT / "bench/results"
GUIDE = ROOT / "docs/choosing.md"
PAGES = (GUIDE, ROOT / "README.md", ROOT / "docs/limits.md", ROOT / "docs/fleet.md", ROOT / "docs/metrics.md")
REGION = re.compile(r"(<!-- bench: ([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
CONTENT: dict[str, Callable[[report.Results], str]] = {
    "machine": report.machine,
    "modes": report.table,
    "verbatim": report.verbatim,
    "workers": report.formulas,
    "front": report.front_table,
    "front-django": lambda results: report.front_table(results, "django"),
    "latency": report.latency_table,
    "memory": report.memory_table,
    "losses": report.losses_table,
    "ratios": report.sentence,
    "edge": report.edge_table,
    "edge-latency": report.edge_latency_table,
    "hardening": report.hardening_table,
    "capacity": report.capacity_table,
    "metrics": report.metrics_table,
}


def results(directory: Path = RESULTS) -> report.Results:
    """The checked-in results, or those in another directory, by part."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}


def filled(page: str, results: report.Results) -> str:
    """The page with every region filled from the results. Raises KeyError for an unknown region."""

    def content(region: re.Match[str]) -> str:
        begin, name, end = region.groups()
        return f"{begin}{CONTENT[name](results)}\n{end}"

    return REGION.sub(content, page)


def main() -> None:
    """Write the pictures, and the regions of every page."""
    found = results()
    for name, picture in report.pictures(found).items():
        (RESULTS / name).write_text(picture)
    for page in PAGES:
        page.write_text(filled(page.read_text(), found))
        print(f"written: {page}")


if __name__ == "__main__":
    main()
