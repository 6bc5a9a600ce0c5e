"""The WSGI application: Django inside the service contract."""

import os

from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, connection

from serving.wsgi import Service

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "wsgi_app.django_site.settings")


def database() -> None:
    """Raise unless the database answers."""
    # This runs outside Django's request cycle, which would drop a connection that broke.
    close_old_connections()
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM django_migrations LIMIT 1")


application = Service(get_wsgi_application(), checks={"database": database})
