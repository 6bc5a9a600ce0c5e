"""`python requirements/lock.py [--upgrade]`: write one lock file with hashes per dependency group.

All groups are resolved together first, so that a package has the same version in all of them.
A version that is locked already stays unless a new requirement excludes it; --upgrade takes the
newest ones. Groups are those of pyproject.toml, here and one folder below.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "requirements"
# Resolve for the oldest Python that process mode uses, without downloading it, on every platform, and
# without a word about this machine's package index.
PYTHON = ("--python-version", "3.12", "--no-python-downloads")
OPTIONS = (*PYTHON, "--universal", "--no-header", "--no-annotate", "--no-emit-index-url")


def groups() -> dict[str, Path]:
    """Each dependency group and the pyproject.toml that contains it."""
    found = {}
    for file in (ROOT / "pyproject.toml", *sorted(ROOT.glob("*/pyproject.toml"))):
        for name in tomllib.loads(file.read_text(encoding="utf-8")).get("dependency-groups", {}):
            found[name] = file
    return found


def locked() -> str:
    """The pins of all lock files, without hashes."""
    lines = (line for file in sorted(LOCKS.glob("*.txt")) for line in file.read_text().splitlines())
    pins = (re.sub(r" \\$", "", line) for line in lines if re.match(r"[\w.-]+(\[[\w,-]+\])?==", line))
    return "".join(f"{pin}\n" for pin in sorted(set(pins)))


def resolve(*arguments: str | Path) -> None:
    """Call `uv pip compile`; end with its exit code if it fails."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *OPTIONS, *map(str, arguments)]
    if code := subprocess.call(command, cwd=ROOT, stdout=subprocess.DEVNULL):
        sys.exit(code)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    # uv prefers the versions that stand in its output file.
    everything = ROOT / ".venv/locked.txt"
    everything.write_text(locked())
    sources = groups()
    selected = [word for name, file in sources.items() for word in ("--group", f"{file}:{name}")]
    resolve(*upgrade, *selected, "--output-file", everything)
    for name, file in sources.items():
        output = LOCKS / f"{name}.txt"
        hashes = ("--generate-hashes", "--constraint", everything, "--output-file", output)
        resolve("--group", f"{file}:{name}", *hashes)
    for stale in {path.stem for path in LOCKS.glob("*.txt")} - sources.keys():
        (LOCKS / f"{stale}.txt").unlink()


if __name__ == "__main__":
    main()
