# One target per service; docker-compose.yml builds all of them. For a single one:
#   docker build --target SERVICE .

# Another source for a base image, such as a mirror or a digest:
#   docker compose build --build-arg PYTHON_IMAGE=registry.example.com/python:3.14-slim
# The defaults are stages, because update tools read FROM lines and no arguments.
ARG PYTHON_IMAGE=python-default
ARG EDGE_IMAGE=edge-default

FROM python:3.14-slim AS python-default

FROM ${PYTHON_IMAGE} AS base
# The container's own address and port. Compose decides which port of the machine leads here.
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    DATA_DIR=/data
WORKDIR /app

# Installs and compiles. None of it reaches the image that runs, except /venv and /app.
FROM base AS builder
# A private package index, if there is one. pip ignores an empty value.
ARG PIP_INDEX_URL
# The certificate of a private authority, if there is one; those of the distribution count as well.
#   docker build --secret id=ca,src=corporate-ca.pem
ENV SSL_CERT_FILE=/run/secrets/ca
# pip lives in an environment of its own, so that the one that runs contains no installer.
RUN python -m venv /pip && python -m venv --without-pip /venv
ENV PIP_PYTHON=/venv/bin/python \
    PIP_CACHE_DIR=/cache \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# What every application's image starts from.
FROM base AS runtime
# A new named volume at /data takes over this owner and mode.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /data
# A number, because Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001
ARG VERSION=unreleased
LABEL org.opencontainers.image.version=${VERSION}

FROM builder AS django-build
RUN --mount=type=cache,target=/cache --mount=type=secret,id=ca \
    --mount=source=requirements/django.txt,target=/lock.txt \
    /pip/bin/pip install --require-hashes --requirement /lock.txt
COPY gunicorn.conf.py ./
COPY serving serving
COPY wsgi_app/django_site wsgi_app/django_site
# The key serves this command alone. The service's own key is made at its first start, in /data.
RUN DJANGO_SECRET_KEY=build python -m wsgi_app.django_site collectstatic --noinput --verbosity 0
# Compiled now, because /app is read-only when it runs; readable for user 10001 whatever the
# umask of the checkout was.
RUN python -m compileall -q . && chmod -R go=rX .

FROM runtime AS django
# Its name in JSON log lines.
ENV SERVICE=django
COPY --link --from=django-build /venv /venv
COPY --link --from=django-build /app /app
CMD ["python", "-m", "serving.gunicorn", "wsgi_app.django_site.wsgi"]

FROM builder AS flask-build
RUN --mount=type=cache,target=/cache --mount=type=secret,id=ca \
    --mount=source=requirements/flask.txt,target=/lock.txt \
    /pip/bin/pip install --require-hashes --requirement /lock.txt
COPY gunicorn.conf.py ./
COPY serving serving
COPY wsgi_app/flask_site wsgi_app/flask_site
# Compiled now, because /app is read-only when it runs; readable for user 10001 whatever the
# umask of the checkout was.
RUN python -m compileall -q . && chmod -R go=rX .

FROM runtime AS flask
ENV SERVICE=flask
COPY --link --from=flask-build /venv /venv
COPY --link --from=flask-build /app /app
CMD ["python", "-m", "serving.gunicorn", "wsgi_app.flask_site"]

FROM builder AS fastapi-build
RUN --mount=type=cache,target=/cache --mount=type=secret,id=ca \
    --mount=source=requirements/fastapi.txt,target=/lock.txt \
    /pip/bin/pip install --require-hashes --requirement /lock.txt
COPY uvicorn.json gunicorn.conf.py ./
COPY serving serving
COPY asgi_app asgi_app
# Compiled now, because /app is read-only when it runs; readable for user 10001 whatever the
# umask of the checkout was.
RUN python -m compileall -q . && chmod -R go=rX .

FROM runtime AS fastapi
ENV SERVICE=fastapi
COPY --link --from=fastapi-build /venv /venv
COPY --link --from=fastapi-build /app /app
CMD ["python", "-m", "serving.uvicorn"]

FROM builder AS fastapi-hybrid-build
RUN --mount=type=cache,target=/cache --mount=type=secret,id=ca \
    --mount=source=requirements/fastapi-hybrid.txt,target=/lock.txt \
    /pip/bin/pip install --require-hashes --requirement /lock.txt

# FastAPI again, with Gunicorn managing Uvicorn workers: FASTAPI_TARGET=fastapi-hybrid
FROM runtime AS fastapi-hybrid
ENV SERVICE=fastapi
COPY --link --from=fastapi-hybrid-build /venv /venv
COPY --link --from=fastapi-build /app /app
# One worker per CPU, and no recycling: see serving/sizing.py.
ENV WORKLOAD=asyncio
CMD ["python", "-m", "serving.gunicorn", "--worker-class", "serving.uvicorn.worker.Worker", \
     "asgi_app.main:app"]

FROM caddy:2.11 AS edge-default

FROM ${EDGE_IMAGE} AS edge
# Certificates are kept here. A new named volume takes over this owner.
RUN chown -R 10001:10001 /data
USER 10001:10001
COPY --chmod=0755 deploy/edge/ /etc/caddy/
