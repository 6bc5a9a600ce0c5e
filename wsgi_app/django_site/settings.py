"""Django's settings. The environment decides; .env.example lists every variable.

https://docs.djangoproject.com/en/6.1/ref/settings/
"""

import os
import secrets
import tempfile
from pathlib import Path
from urllib.parse import quote

import dj_database_url
from django.utils.csp import CSP

from serving import settings

SITE = Path(__file__).parent
DATA_DIR = Path(settings.text("DATA_DIR", ".data")).absolute()


def generated_secret_key() -> str:
    """The key kept in DATA_DIR, made at the first start; every process gets the same one."""
    path = DATA_DIR / "secret_key"
    if not path.exists():
        try:
            DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=DATA_DIR) as draft:  # created with mode 0600
                draft.write(secrets.token_urlsafe(64))
                draft.flush()
                # A link, not a rename: of two processes that start at once, the first one wins.
                os.link(draft.name, path)
        except FileExistsError:
            pass
        except OSError as error:
            allowed = f"a writable directory ({error.strerror}), or set DJANGO_SECRET_KEY"
            settings.refuse("DATA_DIR", str(DATA_DIR), allowed)
    try:
        key = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        key = ""
    if not key:
        settings.refuse(
            "DATA_DIR", str(DATA_DIR), "a directory whose secret_key this user can read, with a key in it"
        )
    return key


def database(url: str) -> dict:
    """DATABASES' entry for DATABASE_URL. Raises SettingError without repeating a password."""
    scheme = url.partition(":")[0] + ":" if "://" in url else ""
    try:
        config = dj_database_url.parse(url, conn_max_age=60, conn_health_checks=True)
    except ValueError:
        config = {}
    if config.get("ENGINE") not in ("django.db.backends.postgresql", "django.db.backends.sqlite3"):
        settings.refuse(
            "DATABASE_URL", f"{scheme}...", "postgres://USER:PASSWORD@HOST:PORT/NAME or sqlite:///PATH"
        )
    if config["ENGINE"].endswith("postgresql"):
        # Django's own backend, with a limit for each answer of the server. See docs/database.md.
        config["ENGINE"] = "wsgi_app.django_site.postgresql"
        # Seconds and milliseconds after which a connection to a host that does not answer fails.
        # libpq itself would wait for as long as TCP does; DATABASE_URL?connect_timeout=... overrides.
        limits = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
        # A host that vanished while a query waits for it is noticed after 30 s and one more interval.
        limits |= {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        config["OPTIONS"] = limits | config.get("OPTIONS", {})
    if config["ENGINE"].endswith("sqlite3"):
        # Readers do not wait for the writer (WAL); a writer waits up to 5 s for another, and
        # takes its lock at the start, because a waiting upgrade cannot be retried.
        config["OPTIONS"] = {
            "timeout": 5,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        }
    return config


def database_url() -> str:
    """DATABASE_URL; without it, the service postgres of Compose if its profile is active, else SQLite."""
    url, profiles = settings.secret("DATABASE_URL"), settings.words("COMPOSE_PROFILES", "")
    if not {"postgres", "*"} & set(profiles):
        # Quoted: a # or ? in the folder's name is no part of a URL's path.
        return url or f"sqlite:///{quote(str(DATA_DIR / 'db.sqlite3'))}"
    if url:
        allowed = "without postgres, because DATABASE_URL names another database; or unset DATABASE_URL"
        settings.refuse("COMPOSE_PROFILES", ",".join(profiles), allowed)
    try:
        password = Path("/run/postgres-password/password").read_text(encoding="ascii").strip()
    except OSError as error:
        allowed = f"without postgres where Compose does not start Django ({error.strerror}); set DATABASE_URL"
        settings.refuse("COMPOSE_PROFILES", ",".join(profiles), allowed)
    return f"postgres://django:{password}@postgres/django"


# Security

SECRET_KEY = settings.secret("DJANGO_SECRET_KEY") or generated_secret_key()
# Keys before the last rotation: what they signed stays valid until they are taken out.
SECRET_KEY_FALLBACKS = settings.words("DJANGO_SECRET_KEY_FALLBACKS", "")
DEBUG = settings.flag("DJANGO_DEBUG")
ALLOWED_HOSTS = [
    *settings.words("DJANGO_ALLOWED_HOSTS", "localhost,.localhost,127.0.0.1,[::1]"),
    f".{settings.text('DOMAIN', 'localhost')}",
    *settings.text("DJANGO_HOST").split(),
]
# Origins whose pages may send forms although the host differs: behind a proxy that rewrites Host, it
# is the proxy's. A host may begin with "*.".
CSRF_TRUSTED_ORIGINS = settings.origins("DJANGO_CSRF_TRUSTED_ORIGINS", subdomains=True)

# On, there is no plain port any more: it would redirect, and a Secure cookie never come back.
# Off, what comes over TLS gets Secure cookies all the same (see MIDDLEWARE), and the proxy redirects.
HTTPS = settings.flag("DJANGO_HTTPS")
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
CSRF_COOKIE_HTTPONLY = True
# An hour, so that a mistake heals within one; raise it once every page is served over TLS.
SECURE_HSTS_SECONDS = 3600 if HTTPS else 0
# Subdomains and preloading bind the whole domain: its owner decides, not one service of it.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021", "mail.W001"]

X_FRAME_OPTIONS = "DENY"
SECURE_CSP = {
    "default-src": [CSP.SELF],
    "img-src": [CSP.SELF, "data:"],
    "base-uri": [CSP.NONE],
    "form-action": [CSP.SELF],
    "frame-ancestors": [CSP.NONE],
    "object-src": [CSP.NONE],
}

# Application

ROOT_URLCONF = "wsgi_app.django_site.urls"
INSTALLED_APPS = [
    "wsgi_app.django_site.apps.GuestbookConfig",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "wsgi_app.django_site.middleware.name_route",
    "wsgi_app.django_site.middleware.secure_cookies",
    "django.middleware.security.SecurityMiddleware",
    # Right behind it: a static file needs nothing of what follows.
    "wsgi_app.django_site.static_files.StaticFilesMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "wsgi_app.django_site.middleware.database_away",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [SITE / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
USE_TZ = True
TIME_ZONE = "UTC"
# This site sends no mail (hence mail.W001 above); name a backend here when yours does.
MAILERS: dict = {}

# Data

DATABASES = {"default": database(database_url())}

# Bytes of a request's body; a longer one gets 400 (an uploaded file does not count).
DATA_UPLOAD_MAX_MEMORY_SIZE = settings.size("MAX_BODY", 1024 * 1024)

# Static files: hashed names may be cached for ever; gzip and brotli copies are made once, at
# `collectstatic`, which the image runs while it is built.
STATIC_URL = "static/"
STATIC_ROOT = SITE / "staticfiles"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
WHITENOISE_KEEP_ONLY_HASHED_FILES = True

# The server configures logging (serving/logging.json): one format, one stream.
LOGGING_CONFIG = None
