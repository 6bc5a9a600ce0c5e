"""`python3 -m checks.readable`: refuse code that the containers of `make dev` could not read.

They run as user 10001 on the files of the working copy, which a clone under `umask 077` keeps private.
Docker Desktop shares files whatever their mode is, so this looks on Linux only.
"""

import stat
import sys
from pathlib import Path


def unreadable(directory: Path) -> list[Path]:
    """The applications' files and folders there that only their owner can read."""
    paths = [path for folder in sorted(directory.glob("*_app")) for path in (folder, *folder.rglob("*"))]
    needed = {path: stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0) for path in paths}
    return [path for path, bits in needed.items() if path.stat().st_mode & bits != bits]


def main() -> None:
    """The command line."""
    if sys.platform == "linux" and (found := unreadable(Path())):
        fix = "must be readable by user 10001 of the containers; change it with chmod -R go=rX *_app"
        sys.exit(f"{found[0]}: {fix}")


if __name__ == "__main__":
    main()
