"""What logging.json names: one log configuration for both servers.

Gunicorn reads the file through `logconfig_json`, Uvicorn through `log_config`.
"""

import logging
from collections.abc import Mapping

from serving import health, peers, settings

LEVELS = ("critical", "error", "warning", "info", "debug")
LEVEL = settings.choice("LOG_LEVEL", LEVELS, "info").upper()


class RequestID(logging.Filter):
    """Give every record the id of the request that it belongs to, or "-"."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Set `record.request_id`."""
        record.request_id = peers.request_id.get()
        return True


class NoProbes(logging.Filter):
    """Keep the probes out of the access log: one every few seconds would bury the rest."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        arguments = record.args
        if isinstance(arguments, Mapping):  # Gunicorn's atoms
            return arguments.get("U") not in health.PATHS
        # Uvicorn's client, method, target, version, status
        return not (arguments and len(arguments) > 2 and arguments[2] in health.PATHS)
