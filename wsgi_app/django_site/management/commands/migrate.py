"""Django's own `migrate`, for deployments: it waits for the database, and one runs at a time."""

import fcntl
import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from serving import logs

SECONDS = 60
# Any number that no other program uses for an advisory lock of the same database.
LOCK = 0x6D696772617465  # "migrate"


class Records(io.TextIOBase):
    """A stream whose lines become log records."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log, self.rest = log, ""

    def write(self, text: str) -> int:
        """Log the lines that are complete."""
        *lines, self.rest = f"{self.rest}{text}".split("\n")
        for line in filter(str.strip, lines):
            self.log(line)
        return len(text)


class Command(migrate.Command):
    """Wait up to a minute for a database that is starting, then migrate."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """With LOG_FORMAT=json, print JSON as the servers do."""
        if logs.JSON:
            logs.configure()
            logger = logging.getLogger(__name__)
            options = {"stdout": Records(logger.info), "stderr": Records(logger.error)} | options
        super().__init__(*arguments, **options)

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


def lock(connection: BaseDatabaseWrapper) -> bool:
    """Take the advisory lock, unless another session has it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
        return bool(cursor.fetchone()[0])


@contextmanager
def one_at_a_time(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Wait until no other migration of this database runs; the lock ends with the process at the latest."""
    if connection.vendor == "postgresql":
        # Asked again and again: CREATE INDEX CONCURRENTLY would wait for a session that waits in
        # pg_advisory_lock, and that session for the migration.
        while not lock(connection):
            time.sleep(0.5)
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
