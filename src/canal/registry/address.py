"""The address of an MLflow store: shown without its secrets, and asked whether anybody answers there."""

import os
import re
from urllib.parse import quote, quote_plus, unquote

from canal.errors import RegistryError

_HIDDEN = "***"
_IN_QUERY = re.compile(r"([?&][^=&#]*(?:pass|pwd|token|secret)[^=&#]*=)[^&#]*", re.IGNORECASE)
_ENVIRONMENT = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
_DATABASES = ("postgresql", "mysql", "mssql")
_CONNECT_S, _ANSWER_S = 10, 30
_SHORTEST = 4
"""Letters a secret has at least that is looked for in a text: shorter ones stand in many words."""


def shown(uri: str) -> str:
    """Return an address as people may read it: without a password, also one that holds ``@`` or ``/``."""
    scheme, separator, rest = uri.partition("://")
    account, at, place = rest.rpartition("@")
    if not separator or not at:
        return _IN_QUERY.sub(rf"\1{_HIDDEN}", uri)
    user, colon, _password = account.partition(":")
    kept = f"{user}:{_HIDDEN}" if colon else user
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", f"{scheme}://{kept}@{place}")


def without_secrets(text: str, uri: str) -> str:
    """Return what MLflow or a database said of ``uri``, without the passwords that it may repeat."""
    text = text.replace(uri, shown(uri))
    for secret in sorted(_secrets(uri), key=len, reverse=True):  # one may begin like another
        text = text.replace(secret, _HIDDEN)
    return text


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


def _ask_server(uri: str) -> None:
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=(_CONNECT_S, _ANSWER_S))
    except requests.exceptions.SSLError:
        return  # somebody answers; MLflow has settings of its own for certificates
    except (requests.RequestException, ValueError) as error:
        raise RegistryError(
            f"the MLflow server {shown(uri)} does not answer ({_reason(error, uri)}): "
            "is it running, and is MLFLOW_TRACKING_URI right?"
        ) from error


def _ask_database(uri: str) -> None:
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("PGCONNECT_TIMEOUT", str(_CONNECT_S))
    try:
        engine = sqlalchemy.create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        raise RegistryError(
            f"cannot open the MLflow store {shown(uri)}: {_reason(error, uri)}; is MLFLOW_TRACKING_URI "
            "right, does the database exist, and is its driver installed?"
        ) from error


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


def _secrets(uri: str) -> set[str]:
    account, at, _ = uri.partition("://")[2].rpartition("@")
    password = account.partition(":")[2] if at else ""
    queried = re.findall(r"[?&][^=&#]*(?:pass|pwd|token|secret)[^=&#]*=([^&#]*)", uri, re.IGNORECASE)
    found = {password, *queried, *(os.environ.get(name, "") for name in _ENVIRONMENT)}
    plain = found | {unquote(one) for one in found}
    written = plain | {quote(one, safe="") for one in plain} | {quote_plus(one) for one in plain}
    return {one for one in written if len(one) >= _SHORTEST}
