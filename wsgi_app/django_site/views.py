"""The guestbook page."""

from django.core.paginator import Paginator
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods
from django.views.defaults import page_not_found

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


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's own page, without its wrapper: that parses the form, and makes 500 of a malformed one."""
    return page_not_found.__wrapped__(request, exception)
