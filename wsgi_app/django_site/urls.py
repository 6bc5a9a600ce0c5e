"""The site's addresses."""

from django.contrib import admin
from django.urls import path

from wsgi_app.django_site.views import favicon, guestbook

urlpatterns = [
    path("", guestbook, name="guestbook"),
    path("admin/", admin.site.urls),
    path("favicon.ico", favicon),
]

handler404 = "wsgi_app.django_site.views.not_found"
handler500 = "wsgi_app.django_site.views.server_error"
