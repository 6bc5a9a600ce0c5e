"""`python -m serving.gunicorn MODULE [OPTION ...]`: Gunicorn's command line, settings checked first."""

import os
import signal

from serving import peers, settings, sizing


def main() -> None:
    """Check what Gunicorn itself would answer with a traceback, then run it.

    While it is imported it reads WEB_CONCURRENCY and FORWARDED_ALLOW_IPS, before any
    configuration file, and it knows no host names (gunicorn/config.py, classes Workers and
    ForwardedAllowIPS).
    """
    # Until the arbiter has its own handlers, which is after it has imported a preloaded application.
    # Process 1 of a container has no default action: the kernel would drop the signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sizing.web_concurrency()
    peers.trusted()
    settings.unset_empty("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT")
    proxies = os.environ.pop("FORWARDED_ALLOW_IPS", None)
    from gunicorn.app.wsgiapp import run

    if proxies is not None:
        os.environ["FORWARDED_ALLOW_IPS"] = proxies
    run("python -m serving.gunicorn")


if __name__ == "__main__":
    main()
