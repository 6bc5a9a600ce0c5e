"""The servers of process mode, as the Dockerfile's CMD lines start them in containers."""

# Target, as in the Dockerfile -> the command of its server.
TARGETS = {
    "django": "python -m serving.gunicorn wsgi_app.django_site.wsgi",
    "flask": "python -m serving.gunicorn wsgi_app.flask_site",
    "fastapi": "python -m serving.uvicorn",
    "fastapi-hybrid": "env WORKLOAD=asyncio python -m serving.gunicorn"
    " --worker-class serving.uvicorn.worker.Worker asgi_app.main:app",
}

# Each service runs the target of its own name, or the one that SERVICE_TARGET chooses.
SERVICES = [target for target in TARGETS if "-" not in target]
