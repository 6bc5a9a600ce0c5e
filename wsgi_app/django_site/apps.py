"""The one Django application of this site."""

from django.apps import AppConfig


class GuestbookConfig(AppConfig):
    """A short label, so that tables read guestbook_entry."""

    name = "wsgi_app.django_site"
    label = "guestbook"
    default_auto_field = "django.db.models.BigAutoField"
