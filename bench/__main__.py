"""`make bench`: measure the server modes, and write the pages that show the figures.

Compare medians and the ratios between them, never single figures: machines are noisy.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import edge, guide, latency, metrics, report, speed, sweeps
from bench.load import machine
from bench.modes import ROOT

# Part -> what measures it. The first ones need no Docker, and `make bench` without PART runs them.
LOCAL: dict[str, Callable[..., Any]] = {
    "modes": speed.run,
    "workers": sweeps.run,
    "front": sweeps.run_front,
    "memory": sweeps.run_memory,
    "losses": speed.run_losses,
    "latency": latency.run,
}
PARTS = LOCAL | {"metrics": metrics.run, "edge": edge.run, "hardening": edge.run_hardening}
PROGRAMS = {"latency": ("wrk", "h2load"), "front": ("wrk", "h2load"), "losses": ()}
PROGRAMS |= {"edge": ("wrk", "h2load", "docker"), "hardening": ("wrk", "docker")}
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client", "docker": "docker.io"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one short round; writes nothing to results/")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the modes whose name matches")
    options = parser.parse_args()
    parts = options.parts or list(LOCAL)
    for part in parts:
        if part not in PARTS:
            sys.exit(f"PART='{part}': must be one of {', '.join(PARTS)}")
        for program in PROGRAMS.get(part, ("wrk",)):
            if not shutil.which(program):
                sys.exit(f"{program} not found; part {part} needs it: apt install {PACKAGES[program]}")
    partial = bool(options.quick or options.only)
    directory = Path(tempfile.mkdtemp(prefix="bench-")) if partial else guide.RESULTS
    with tempfile.TemporaryDirectory() as data:
        os.environ["DATA_DIR"] = data
        os.environ["DJANGO_SECRET_KEY"] = "of a measurement"
        for command in (["migrate", "-v0"], ["collectstatic", "--noinput", "-v0"]):
            subprocess.run([sys.executable, "-m", "wsgi_app.django_site", *command], check=True, cwd=ROOT)
        for part in parts:
            more = {"only": options.only} if part in ("modes", "losses") else {}
            results = {"machine": machine(), "figures": PARTS[part](partial, **more)}
            (directory / f"{part}.json").write_text(json.dumps(results, indent=1) + "\n")
            print(report.TABLES[part]({part: results}), flush=True)
    if not partial:
        return guide.main()
    for name, picture in report.pictures(guide.results(directory)).items():
        (directory / name).write_text(picture)
    print(f"\nwritten: {directory}")


if __name__ == "__main__":
    main()
