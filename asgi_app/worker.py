"""The hybrid: Gunicorn manages the processes, Uvicorn serves in them.

`gunicorn --worker-class asgi_app.worker.Worker asgi_app.main:app` with WORKLOAD=asyncio.
"""

import inspect
from typing import Any

import uvicorn
from uvicorn_worker import UvicornWorker

from asgi_app import launcher
from serving.gunicorn.reload import Reloadable

# Gunicorn decides these for its workers.
GUNICORNS = frozenset({"app", "host", "port", "workers", "log_config", "log_level", "reload"})


def options() -> dict[str, Any]:
    """What uvicorn.json says about a worker; the stock class would drop all of it."""
    known = inspect.signature(uvicorn.Config).parameters.keys() - GUNICORNS
    found = {key: value for key, value in launcher.defaults().items() if key in known}
    if "headers" in found:
        found["headers"] = [header.split(":", 1) for header in found["headers"]]
    return found


class Worker(Reloadable, UvicornWorker):
    """Serve as `python -m asgi_app` would, in Gunicorn's process."""

    CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | options()
