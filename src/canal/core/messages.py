"""What a person may be shown: no character that steers a terminal, and no secret that an address holds."""

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
"""Letters a secret has at least that is looked for in a text: shorter ones stand in many words."""


def visible(text: object) -> str:
    """Return a text with � for each character that would steer a terminal, or that nobody sees."""
    return "".join(one if one.isprintable() or one in _LAYOUT else "�" for one in str(text))


def tell(text: object) -> None:
    """Write a line for a person to the error stream; all of canal's messages go through here."""
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


def shown_address(address: str) -> str:
    """Return an address as people may read it: without a password or token, also one with ``@`` or ``/``.

    It may lack its scheme, as one does that was typed wrongly. What begins like a path is one.
    """
    scheme, account, place = _parts(address)
    user, colon, _password = account.partition(":")
    kept = f"{user}:{_HIDDEN}" if colon else _HIDDEN if account and scheme in _SERVERS else user
    before = address[: len(address) - len(account) - len(place)]
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", f"{before}{kept}{place}")


def without_secrets(text: str, address: str) -> str:
    """Return what a server, driver or library said of ``address``, without secrets that it may repeat."""
    text = text.replace(address, shown_address(address))
    for secret in sorted(_secrets(address), key=len, reverse=True):  # one may begin like another
        text = text.replace(secret, _HIDDEN)
    return text


def _parts(address: str) -> tuple[str, str, str]:
    """Return scheme, account and the rest from its ``@`` on; an address may have none of the first two."""
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
