"""The one Django application of this site, and what it depends on."""

from django.apps import AppConfig
from django.conf import settings
from django.contrib.staticfiles.storage import staticfiles_storage
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections, connection

from wsgi_app.django_site.postgresql import limits


class GuestbookConfig(AppConfig):
    """A short label, so that tables read guestbook_entry."""

    name = "wsgi_app.django_site"
    label = "guestbook"
    default_auto_field = "django.db.models.BigAutoField"


def database() -> None:
    """Raise unless the database answers."""
    with limits.check():
        # This runs outside Django's request cycle, which would drop a connection that broke.
        close_old_connections()
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM django_migrations LIMIT 1")


def static_files() -> None:
    """Raise unless pages can name their static files: without the manifest each of them answers 500."""
    if not settings.DEBUG and not staticfiles_storage.hashed_files:
        raise ImproperlyConfigured("no manifest of static files: run collectstatic, then restart")
