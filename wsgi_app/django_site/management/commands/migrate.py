"""Django's own `migrate`, for deployments: it waits for the database, and one runs at a time."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

SECONDS = 60
# Any number that no other program uses for an advisory lock of the same database.
LOCK = 0x6D696772617465  # "migrate"


class Command(migrate.Command):
    """Wait up to a minute for a database that is starting, then migrate."""

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the command with the database's lock."""
        connection = connections[options["database"]]
        if connection.vendor == "postgresql":
            self.wait_for(connection)
        with one_at_a_time(connection):
            super().handle(*args, **options)

    def wait_for(self, connection: BaseDatabaseWrapper) -> None:
        """Return when the database accepts a connection."""
        deadline = time.monotonic() + SECONDS
        reported = False
        while True:
            try:
                return connection.ensure_connection()
            except OperationalError as error:
                reason = " ".join(str(error).split())
            if time.monotonic() > deadline:
                raise CommandError(f"the database does not answer within {SECONDS} s: {reason}")
            if not reported:
                self.stderr.write(f"waiting for the database: {reason}")
                reported = True
            time.sleep(1)


@contextmanager
def one_at_a_time(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Wait until no other migration of this database runs; the lock ends with the process at the latest."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        try:
            yield
        finally:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
    else:
        settings.DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (settings.DATA_DIR / "migrate.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
