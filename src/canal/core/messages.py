"""Messages for users, without terminal control characters and without the secrets of an address (URI)."""

import os
import re
import sys
from urllib.parse import quote, quote_plus, unquote

_LAYOUT = "\n\t"
_HIDDEN = "***"
_IN_QUERY = re.compile(
    r"((?:^|[?&;])[^=&#;]*(?:pass|pwd|token|secret|key|auth|cred|sig|odbc_connect)[^=&#;]*=)([^&#;]*)",
    re.IGNORECASE,
)
_ENVIRONMENT = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
_SERVERS = ("http", "https")
_SHORTEST = 4
"""Fewest characters of a secret that is masked in a text: shorter ones occur within ordinary words."""


def visible(text: object) -> str:
    """Return a text with � for each control or invisible character."""
    return "".join(one if one.isprintable() or one in _LAYOUT else "�" for one in str(text))


def tell(text: object) -> None:
    """Print a message for the user to the error stream; all of canal's messages use this function."""
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


def shown_address(address: str) -> str:
    """Return an address with its password or token masked, even one with ``@`` or ``/`` in it.

    An address without a scheme (a typing error) is masked, too; an address that starts like a path is a path.
    """
    scheme, account, place = _parts(address)
    user, colon, _password = account.partition(":")
    kept = f"{user}:{_HIDDEN}" if colon else _HIDDEN if account and scheme in _SERVERS else user
    before = address[: len(address) - len(account) - len(place)]
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", f"{before}{kept}{place}")


def without_secrets(text: str, address: str) -> str:
    """Return a message of a server, driver or library about ``address``, with its secrets masked."""
    text = text.replace(address, shown_address(address))
    for secret in sorted(_secrets(address), key=len, reverse=True):  # one may begin like another
        text = text.replace(secret, _HIDDEN)
    return text


def _parts(address: str) -> tuple[str, str, str]:
    """Return scheme, account and the rest from ``@`` on; scheme and account may be empty."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    account, at, place = rest.rpartition("@")
    is_path = not separator and address.startswith(("/", ".")) and not address.startswith("//")
    if not at or is_path:
        return scheme.lower(), "", rest
    return scheme.lower(), account, f"@{place}"


def _secrets(address: str) -> set[str]:
    scheme, account, _ = _parts(address)
    user, colon, password = account.partition(":")
    token = user if scheme in _SERVERS and not colon else password
    queried = [value for _, value in _IN_QUERY.findall(address)]
    found = {token, *queried, *(os.environ.get(name, "") for name in _ENVIRONMENT)}
    plain = found | {unquote(one) for one in found}
    written = plain | {quote(one, safe="") for one in plain} | {quote_plus(one) for one in plain}
    return {one for one in written if len(one) >= _SHORTEST}
