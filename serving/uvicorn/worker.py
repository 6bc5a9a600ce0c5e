"""The hybrid: Gunicorn manages the processes, Uvicorn serves in them.

`python -m serving.gunicorn --worker-class serving.uvicorn.worker.Worker asgi_app.main:app` with
WORKLOAD=asyncio. Gunicorn's arbiter drains before it stops the workers.
"""

import logging
import signal
from typing import Any, override

from uvicorn_worker import UvicornWorker

from serving.gunicorn.reload import Reloadable
from serving.uvicorn import launcher, supervisor
from serving.uvicorn.supported import check_overrides

# Options of uvicorn.json that Gunicorn decides for its workers.
GUNICORNS = frozenset({"app", "host", "port", "workers", "log_config", "log_level", "reload"})


class Worker(Reloadable, UvicornWorker):
    """Serve in Gunicorn's process as `python -m serving.uvicorn` does in its own."""

    @classmethod
    def setup(cls) -> None:
        """Take the options of uvicorn.json, which the stock class ignores. The arbiter calls it.

        Not at import: Gunicorn would print a traceback instead of the one line of a wrong file.
        """
        check_overrides(cls)
        values = launcher.with_environment(launcher.defaults())
        options = launcher.config_options(values)
        ours = {name: value for name, value in options.items() if name not in GUNICORNS}
        cls.CONFIG_KWARGS = UvicornWorker.CONFIG_KWARGS | ours

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.descriptors = supervisor.FileDescriptors()
        # The stock class gives Uvicorn's loggers Gunicorn's handlers and nothing else. With
        # serving/logging.json those are the root logger's.
        # serving/asgi.py writes the access line, unless uvicorn.json says otherwise.
        for name in ("uvicorn.error", "uvicorn.access") if self.config.access_log else ("uvicorn.error",):
            uvicorn_logger = logging.getLogger(name)
            uvicorn_logger.propagate = not uvicorn_logger.handlers

    @override
    def handle_exit(self, sig: int, frame: Any) -> None:
        """On SIGQUIT, stop as on SIGTERM; the stock class goes on, and the arbiter kills it later."""
        super().handle_exit(sig, frame)
        signal.raise_signal(signal.SIGTERM)

    @override
    async def callback_notify(self) -> None:
        """Send the heartbeat."""
        self.descriptors.check()
        await super().callback_notify()
