"""`make pin`: write the digests of the base images into the Dockerfile.

A tag such as 3.14-slim names a newer image every few weeks. With a digest behind the tag, every build
starts from the same image, until this command, or Dependabot, writes a newer digest.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

DOCKERFILE = Path("Dockerfile")
# FROM with the tag of an image; a stage or an argument has no tag.
FROM = re.compile(r"(?m)^FROM (?P<image>[\w./:-]+:[\w.-]+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?(?= AS )")


def current_digest(image: str) -> str:
    """The digest that the tag has in its registry now; exits if the registry does not answer."""
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", image]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{image}: no digest found; {DOCKERFILE} is as before\n{found.stderr.strip()}")
    return str(json.loads(found.stdout)["digest"])


def main() -> None:
    """The command line."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    images = {found["image"]: found["digest"] for found in FROM.finditer(text)}
    digests = {image: current_digest(image) for image in images}
    DOCKERFILE.write_text(FROM.sub(lambda found: f"FROM {found['image']}@{digests[found['image']]}", text))
    for image, digest in digests.items():
        print(f"{image}: {'unchanged' if images[image] == digest else digest}")


if __name__ == "__main__":
    main()
