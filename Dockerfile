# copier: filter trim
# copier: filter replace("" if edge else " EDGE_IMAGE=caddy:2", "")
ARG PYTHON_IMAGE=python:3.14-slim EDGE_IMAGE=caddy:2
# copier: endfilter
# copier: if edge
FROM ${EDGE_IMAGE} AS edge
RUN chown -R 10001:10001 /data
USER 10001:10001
COPY --chmod=0755 deploy/edge/ /etc/caddy/

# copier: endif
FROM ${PYTHON_IMAGE} AS base
# The container's own address and port: Compose decides which port of the machine leads here.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 PORT=8000 DATA_DIR=/data
WORKDIR /app
# pip lives in an environment of its own, so that /venv carries none.
FROM base AS builder
RUN python -m venv /pip && python -m venv --without-pip /venv
ENV PIP_CACHE_DIR=/cache PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_REQUIRE_HASHES=1 PIP_PYTHON=/venv/bin/python
FROM base AS runtime
# A named volume takes its owner from /data; Kubernetes' runAsNonRoot can check only a number.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /data
USER 10001:10001
ARG VERSION=unreleased
# copier: filter replace(" org.opencontainers.image.licenses=MIT", "")
LABEL org.opencontainers.image.version=${VERSION} org.opencontainers.image.licenses=MIT

# copier: endfilter
# copier: if "django" in stacks
FROM builder AS django-build
RUN --mount=type=cache,target=/cache --mount=source=requirements/django.txt,target=/lock /pip/bin/pip install -r /lock
COPY gunicorn.conf.py ./
COPY serving serving
COPY wsgi_app/django_site wsgi_app/django_site
# A key for this command alone; the service's own is made at its first start, in /data.
RUN DJANGO_SECRET_KEY=build python -m wsgi_app.django_site collectstatic --noinput -v 0 && python -m compileall -q . && chmod -R go=rX .
FROM runtime AS django
COPY --link --from=django-build /venv /venv
COPY --link --from=django-build /app /app
CMD ["python", "-m", "serving.gunicorn", "wsgi_app.django_site.wsgi"]

# copier: endif
# copier: if "flask" in stacks
FROM builder AS flask-build
RUN --mount=type=cache,target=/cache --mount=source=requirements/flask.txt,target=/lock /pip/bin/pip install -r /lock
COPY gunicorn.conf.py ./
COPY serving serving
COPY wsgi_app/flask_site wsgi_app/flask_site
RUN python -m compileall -q . && chmod -R go=rX .
FROM runtime AS flask
COPY --link --from=flask-build /venv /venv
COPY --link --from=flask-build /app /app
CMD ["python", "-m", "serving.gunicorn", "wsgi_app.flask_site"]

# copier: endif
# copier: if "fastapi" in stacks
FROM builder AS fastapi-build
RUN --mount=type=cache,target=/cache --mount=source=requirements/fastapi.txt,target=/lock /pip/bin/pip install -r /lock
# copier: filter replace("" if hybrid else " gunicorn.conf.py", "")
COPY uvicorn.json gunicorn.conf.py ./
# copier: endfilter
COPY serving serving
COPY asgi_app asgi_app
RUN python -m compileall -q . && chmod -R go=rX .
FROM runtime AS fastapi
COPY --link --from=fastapi-build /venv /venv
COPY --link --from=fastapi-build /app /app
CMD ["python", "-m", "asgi_app"]
# copier: endif
# copier: if hybrid
FROM builder AS fastapi-hybrid-build
RUN --mount=type=cache,target=/cache --mount=source=requirements/fastapi-hybrid.txt,target=/lock /pip/bin/pip install -r /lock
FROM runtime AS fastapi-hybrid
COPY --link --from=fastapi-hybrid-build /venv /venv
COPY --link --from=fastapi-build /app /app
CMD ["python", "-m", "serving.gunicorn", "--worker-class", "asgi_app.worker.Worker", "asgi_app.main:app"]
# copier: endif
# copier: endfilter
# copier: print "\n"
