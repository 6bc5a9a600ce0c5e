"""`python -m serving.gunicorn MODULE [OPTION ...]`: Gunicorn's own command line, settings checked first.

Gunicorn reads these two variables while it is imported, before any configuration file, and
answers a wrong WEB_CONCURRENCY with a traceback (gunicorn/config.py, class Workers).
"""

from serving import peers, settings, sizing

sizing.web_concurrency()
peers.trusted()
settings.unset_empty("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT")

from gunicorn.app.wsgiapp import run  # noqa: E402  only now, see above

if __name__ == "__main__":
    run("python -m serving.gunicorn")
