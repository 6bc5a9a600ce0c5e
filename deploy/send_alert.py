"""`make test-alert`: send an alert through Alertmanager to ALERT_WEBHOOK_URL, and say whether it arrived.

    python3 deploy/send_alert.py

Alertmanager counts what it sends; the alert has arrived when the receiver has answered with a status of 200
to 299. Python 3.9 or newer is enough.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time

URL = "http://127.0.0.1:9093"
ALERT = ("TestAlert", "service=test", "severity=ticket", "--annotation=summary=This alert is a test.")
# Seconds: Alertmanager waits `group_wait` (10 s) for further alerts, and the receiver may be slow.
PATIENCE = 45
COUNTER = r'^alertmanager_notification_requests_{}total{{.*integration="webhook".*}} (\S+)$'


def inside(*command: str) -> str:
    """The output of a command in Alertmanager's container."""
    words = ["docker", "compose", "exec", "--no-TTY", "alertmanager", *command]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"{found.stderr.strip()}\nAlertmanager must run: write COMPOSE_PROFILES=metrics in .env")
    return found.stdout


def counters() -> tuple[float, float]:
    """How many requests to the receiver have succeeded, and how many have failed."""
    text = inside("wget", "-q", "-Y", "off", "-O", "-", f"{URL}/metrics")
    total, failed = (
        sum(map(float, re.findall(COUNTER.format(kind), text, re.MULTILINE))) for kind in ("", "failed_")
    )
    return total - failed, failed


def main() -> None:
    """The command line."""
    if not inside("cat", "/tmp/webhook-url"):  # noqa: S108  in the container
        sys.exit("ALERT_WEBHOOK_URL='': must be an address, to which alerts are sent; write it in .env")
    succeeded, failed = counters()
    number = f"number={time.time():.0f}"
    inside("amtool", f"--alertmanager.url={URL}", "alert", "add", *ALERT, number)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(1)
        now_succeeded, now_failed = counters()
        if now_succeeded > succeeded:
            print("TestAlert was sent, and the receiver accepted it.")
            return
        if now_failed > failed:
            break
    words = ["docker", "compose", "logs", "--tail", "5", "--no-log-prefix", "alertmanager"]
    log = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    sys.exit(f"TestAlert did not arrive. The log of Alertmanager:\n{log}")


if __name__ == "__main__":
    main()
