"""The one Django application of this site, and what it depends on."""

from django.apps import AppConfig
from django.db import close_old_connections, connection


class GuestbookConfig(AppConfig):
    """A short label, so that tables read guestbook_entry."""

    name = "wsgi_app.django_site"
    label = "guestbook"
    default_auto_field = "django.db.models.BigAutoField"


def database() -> None:
    """Raise unless the database answers."""
    # This runs outside Django's request cycle, which would drop a connection that broke.
    close_old_connections()
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM django_migrations LIMIT 1")
