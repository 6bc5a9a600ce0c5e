"""`python -m wsgi_app.django_site COMMAND`: Django's management commands for this site."""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "wsgi_app.django_site.settings")
execute_from_command_line([f"python -m {__package__}", *sys.argv[1:]])
