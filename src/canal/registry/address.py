"""The address of an MLflow store: asked for an answer, held by one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from canal.core.errors import RegistryError
from canal.core.messages import shown_address, without_secrets

if TYPE_CHECKING:
    from sqlalchemy import Engine

_POSTGRESQL = "postgresql"
_DATABASES = (_POSTGRESQL, "mysql", "mssql")
_OPENING = 0x63616E616C
"""The advisory lock of PostgreSQL under which canal opens a store: "canal" in ASCII."""

_CONNECT_S, _ANSWER_S = 10, 30


def require_answer(uri: str) -> None:
    """Ask a server or a database once; MLflow itself would ask ten times, for minutes.

    Raises
    ------
    RegistryError
        If nobody answers within half a minute, or a database refuses the user.
    """
    if uri.startswith(("http://", "https://")):
        _ask_server(uri)
    elif uri.startswith(_DATABASES):
        _ask_database(uri)


@contextmanager
def alone_at(uri: str, patience_s: int) -> Iterator[None]:
    """Keep other processes of canal, on any machine, from opening the same PostgreSQL store meanwhile.

    Two that find it empty would both make MLflow's tables, and one would crash. A server makes its own.

    Raises
    ------
    RegistryError
        If another process holds the lock for longer than ``patience_s`` seconds.
    """
    if not uri.startswith(_POSTGRESQL):
        yield
        return
    import sqlalchemy
    from sqlalchemy.exc import OperationalError

    with _engine(uri) as engine, engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sqlalchemy.text(f"SET lock_timeout = '{patience_s}s'"))
        try:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_OPENING})"))
        except OperationalError as error:
            raise RegistryError(
                f"another process has been opening {shown_address(uri)} for {patience_s} s "
                f"({_reason(error, uri)}): wait for it, or end it"
            ) from error
        yield


def _ask_server(uri: str) -> None:
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=(_CONNECT_S, _ANSWER_S))
    except requests.exceptions.SSLError:
        return  # somebody answers; MLflow has settings of its own for certificates
    except (requests.RequestException, ValueError) as error:
        raise RegistryError(
            f"the MLflow server {shown_address(uri)} does not answer ({_reason(error, uri)}): "
            "is it running, and is MLFLOW_TRACKING_URI right?"
        ) from error


def _ask_database(uri: str) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("PGCONNECT_TIMEOUT", str(_CONNECT_S))
    try:
        with _engine(uri) as engine:
            engine.connect().close()
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        raise RegistryError(
            f"cannot open the MLflow store {shown_address(uri)}: {_reason(error, uri)}; is "
            "MLFLOW_TRACKING_URI right, does the database exist, and is its driver installed?"
        ) from error


@contextmanager
def _engine(uri: str) -> "Iterator[Engine]":
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        yield engine
    finally:
        engine.dispose()


def _reason(error: BaseException, uri: str) -> str:
    """Return the innermost cause in one line: the outer ones repeat it."""
    cause: BaseException = error
    while isinstance(inner := _inner(cause), BaseException):
        cause = inner
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return without_secrets(lines[0], uri)[:300]


def _inner(error: BaseException) -> object:
    return getattr(error, "reason", None) or error.__cause__ or error.__context__
