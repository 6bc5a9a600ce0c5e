"""A guestbook in Django: pages, a form, the admin."""
