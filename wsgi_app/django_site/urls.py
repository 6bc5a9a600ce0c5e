"""The site's addresses."""

from django.contrib import admin
from django.urls import path

from wsgi_app.django_site.views import guestbook

urlpatterns = [
    path("", guestbook, name="guestbook"),
    path("admin/", admin.site.urls),
]
handler404 = "wsgi_app.django_site.views.not_found"
