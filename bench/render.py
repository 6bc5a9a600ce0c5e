"""`python -m bench.render STACKS`: what a project with these applications would not contain.

Renders the working tree into a temporary folder with STACKS, such as flask,fastapi, and prints
the files that are missing there and the lines that were removed from the others.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """The command line."""
    if len(sys.argv) != 2:
        sys.exit("STACKS must name applications, such as STACKS=flask or STACKS=django,fastapi")
    with tempfile.TemporaryDirectory() as folder:
        stacks = f"stacks=[{sys.argv[1]}]"
        source, project = Path(folder, "source"), Path(folder, "project")
        # The files of the working tree, also those that are not committed yet.
        listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).write_bytes((ROOT / name).read_bytes())
        copier = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", "--data", stacks]
        subprocess.run([*copier, str(source), str(project)], check=True)
        # Of a file that is missing, the name alone.
        diff = ["git", "diff", "--no-index", "--stat=100", "--patch", "--irreversible-delete"]
        subprocess.run([*diff, "source", "project"], cwd=folder, check=False)


if __name__ == "__main__":
    main()
