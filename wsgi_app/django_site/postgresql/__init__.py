"""Django's PostgreSQL backend with limits: no request waits forever for a server that hangs.

https://docs.djangoproject.com/en/6.1/ref/databases/#subclassing-the-built-in-database-backends
"""
