"""Fill the marked regions of docs/choosing.md and README.md from the checked-in results.

A region begins with `<!-- bench: NAME -->` and ends with `<!-- /bench -->`, each on its own line.
Everything outside the regions is written by hand. `make bench` ends with this module.
"""

import json
import re
from collections.abc import Callable

from bench import report
from bench.modes import ROOT

RESULTS = ROOT / "bench/results"
GUIDE = ROOT / "docs/choosing.md"
PAGES = (GUIDE, ROOT / "README.md")
REGION = re.compile(r"(<!-- bench: ([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
CONTENT: dict[str, Callable[[report.Results], str]] = {
    "machine": report.machine,
    "modes": report.table,
    "verbatim": report.verbatim,
    "workers": report.formulas,
    "memory": report.memory_table,
    "losses": report.losses_table,
    "ratios": report.sentence,
}


def filled(page: str, results: report.Results) -> str:
    """The page with every region filled from the results. Raises KeyError for an unknown region."""

    def content(region: re.Match[str]) -> str:
        begin, name, end = region.groups()
        return f"{begin}{CONTENT[name](results)}\n{end}"

    return REGION.sub(content, page)


def main() -> None:
    """Write the pictures, and the regions of every page."""
    results = json.loads((RESULTS / "results.json").read_text())
    for name, picture in report.pictures(results).items():
        (RESULTS / name).write_text(picture)
    for page in PAGES:
        page.write_text(filled(page.read_text(), results))
        print(f"written: {page}")


if __name__ == "__main__":
    main()
