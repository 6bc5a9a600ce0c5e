"""The WSGI application: Django inside the service contract."""

import os

from django.core.wsgi import get_wsgi_application

from serving.wsgi import Service
from wsgi_app.django_site.apps import database, static_files
from wsgi_app.django_site.postgresql import limits

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "wsgi_app.django_site.settings")
limits.limit_requests()

application = Service(get_wsgi_application(), checks={"database": database, "static files": static_files})
