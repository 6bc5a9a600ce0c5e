"""The guestbook page."""

import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.paginator import Paginator
from django.db import InterfaceError, OperationalError
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.views import defaults
from django.views.decorators.http import require_http_methods

from wsgi_app.django_site.apps import static_files
from wsgi_app.django_site.models import Entry

ENTRIES_PER_PAGE = 10


class EntryForm(ModelForm):
    """What a visitor fills in."""

    class Meta:
        model = Entry
        fields = ("author", "message")


@require_http_methods(["GET", "HEAD", "POST"])
def guestbook(request: HttpRequest) -> HttpResponse:
    """Show the entries, newest first; add one on POST."""
    form = EntryForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.save()
        return redirect("guestbook")
    page = Paginator(Entry.objects.all(), ENTRIES_PER_PAGE).get_page(request.GET.get("page"))
    status = 422 if form.errors else 200
    return render(request, "guestbook.html", {"form": form, "page": page}, status=status)


def favicon(request: HttpRequest) -> HttpResponse:
    """The icon for pages that name none, such as those of the admin."""
    return redirect(static("guestbook.svg"))


def server_error(request: HttpRequest) -> HttpResponse:
    """503 where a database or the static files are away, because that passes; 500 for everything else."""
    if not isinstance(sys.exception(), (InterfaceError, OperationalError)) and has_manifest():
        return defaults.server_error(request)
    return unavailable()


def unavailable() -> HttpResponse:
    """503, for what passes."""
    return HttpResponse("<h1>Service Unavailable</h1>", status=503, headers={"Retry-After": "5"})


def has_manifest() -> bool:
    """Whether pages can name their static files; /readyz asks the same, but a moment later."""
    try:
        static_files()
    except (ImproperlyConfigured, ValueError):
        return False
    return True


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's own page, without its wrapper: that parses the form, and makes 500 of a malformed one."""
    return defaults.page_not_found.__wrapped__(request, exception)
