"""`python -m serving.gunicorn MODULE [OPTION ...]`: Gunicorn's own command line, settings checked first.

Gunicorn reads these two variables while it is imported, before any configuration file, and
answers a wrong WEB_CONCURRENCY, or a host name in FORWARDED_ALLOW_IPS, with a traceback
(gunicorn/config.py, classes Workers and ForwardedAllowIPS).
"""

import os

from serving import peers, settings, sizing

sizing.web_concurrency()
peers.trusted()
settings.unset_empty("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT")
proxies = os.environ.pop("FORWARDED_ALLOW_IPS", "")

from gunicorn.app.wsgiapp import run  # noqa: E402  only now, see above

os.environ |= {"FORWARDED_ALLOW_IPS": proxies} if proxies else {}

if __name__ == "__main__":
    run("python -m serving.gunicorn")
