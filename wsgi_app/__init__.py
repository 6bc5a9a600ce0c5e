"""The WSGI applications: django_site and flask_site."""
