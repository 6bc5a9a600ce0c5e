"""The backend, under the name that Django looks for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
from django.db.backends.postgresql import base

from wsgi_app.django_site.postgresql import limits


class NoConnectionError(psycopg.OperationalError, limits.AwayError):
    """What middleware.database_away answers, in the form that Django knows."""


class Connection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes too long.

    libpq has no such limit: TCP acknowledges what a server that hangs does not read.
    """

    def wait(self, gen: Any, *args: Any, timeout: float | None = None, **options: Any) -> Any:
        """Every query, commit and rollback waits here."""
        limit = seconds_to_wait()
        if timeout is not None or limit is None:
            return super().wait(gen, *args, timeout=timeout, **options)
        started = time.monotonic()
        try:
            return super().wait(gen, *args, timeout=limit, **options)
        except psycopg.OperationalError as error:
            if time.monotonic() - started < limit:
                raise
            self.close()
            raise psycopg.OperationalError(f"no answer within {limit:.3g} s") from error


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's own, with connections of the class above."""

    Database = SimpleNamespace(**vars(psycopg) | {"connect": Connection.connect})

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Open a connection, unless the database is known to hang."""
        if (limit := seconds_to_wait()) is not None:
            if not limit:
                raise psycopg.OperationalError("no answer in time, and no time to connect again")
            seconds = min(int(conn_params["connect_timeout"]), max(1, round(limit)))
            conn_params = conn_params | {"connect_timeout": seconds}
        with as_no_connection(), limits.ask():
            return super().get_new_connection(conn_params)

    def is_usable(self) -> bool:
        """Whether an open connection answers. Django asks before a request uses it."""
        if self.connection is None or self.connection.closed:
            return False
        try:
            with limits.ask(), limits.within(limits.USABLE_SECONDS):
                self.connection.execute("SELECT 1")
        except (limits.AwayError, psycopg.Error):
            return False
        return True


def seconds_to_wait() -> float | None:
    """limits.patience() with an exception that Django knows."""
    with as_no_connection():
        return limits.patience()


@contextmanager
def as_no_connection() -> Iterator[None]:
    """Raise a NoConnectionError where the request is refused or the connection fails."""
    try:
        yield
    except (limits.AwayError, psycopg.OperationalError) as error:
        raise NoConnectionError(str(error)) from error
