"""The guestbook in Django's admin."""

from django.contrib import admin

from wsgi_app.django_site.models import Entry


@admin.register(Entry)
class EntryAdmin(admin.ModelAdmin):
    """Newest first, as on the page."""

    list_display = ("author", "message", "created")
    search_fields = ("author", "message")
