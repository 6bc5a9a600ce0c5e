"""The ASGI application, for a site whose views wait on many things at once: see bench/ first."""

import os

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application

from serving.asgi import Service
from wsgi_app.django_site.apps import database, static_files
from wsgi_app.django_site.postgresql import limits

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "wsgi_app.django_site.settings")
limits.limit_requests()

CHECKS = {"database": sync_to_async(database), "static files": sync_to_async(static_files)}
application = Service(get_asgi_application(), checks=CHECKS)
