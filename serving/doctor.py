"""The doctor moved: `python -m checks.doctor` replaces `python -m serving.doctor`."""

import sys

print("python -m checks.doctor replaces python -m serving.doctor", file=sys.stderr)
sys.exit(2)
