"""What people are told: errors made for them, and text that no terminal misreads and no secret is in."""

import errno
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk or quota."""

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error numbers of missing permissions."""


LONGEST = 2000
"""Most characters of a message, which may quote input of any length."""


class CanalError(Exception):
    """The base class of errors for users; the command line prints them without a traceback.

    The middle of a message of more than `LONGEST` characters is left out: its beginning says what was
    expected, its end what to do.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= LONGEST:
            return text
        marker = f" [... {len(text) - LONGEST:,} characters more ...] "
        end = LONGEST // 3
        return text[: LONGEST - end - len(marker)] + marker + text[-end:]


class ConfigError(CanalError):
    """params.yaml is invalid; the message names the path of the key."""


class SourceError(CanalError):
    """A source cannot be fetched, or its bytes are not the declared ones."""


class DataError(CanalError):
    """An h5ad file cannot be read the way its declaration says."""


class GateError(CanalError):
    """A stage did not pass its gate, or its verdict is about other bytes."""


class ModelError(CanalError):
    """A stored model is incomplete, damaged, or of an unknown format."""


class SumsError(CanalError):
    """Sums of the exact memory cannot be computed, merged, or read."""


class TrainingError(CanalError):
    """A stage cannot be trained with its inputs or settings."""


class HistoryError(CanalError):
    """A change would rewrite stages that are already learned."""


class RegistryError(CanalError):
    """A version is missing from the registry, damaged, or not allowed."""


class ReadOnlyError(RegistryError):
    """The registry or its files are read-only for this user."""


class LedgerError(RegistryError):
    """Verification of the ledger failed, or an entry cannot be added."""


class PolicyError(RegistryError):
    """A version does not pass the promotion policy."""


class AuditError(RegistryError):
    """The registry differs from what was registered, or a version cannot be reproduced."""


class SigningError(RegistryError):
    """A key or a keyring cannot be used."""


_OPTION = re.compile(
    r"(?:canal stage add: )?(?<![\w-])--([a-z][a-z-]*[a-z])"
    r"(?:[ =]([A-Z]{2,}[\w.]*|counts|[a-z0-9]+_[a-z0-9_]+|raw|human|mouse|louvain|leiden|fast|cpu)\b)?"
)
_ARGUMENTS = {"map": "label_map"}
"""Options of commands that are called otherwise in Python."""


def in_python(text: str) -> str:
    """Return a message with the arguments of Python functions in place of a command's options.

    ``--gene-column`` is ``gene_column`` there, and ``--values counts`` ``values='counts'``; what a shell is
    to be told, between backticks, stays.
    """

    def argument(found: re.Match[str]) -> str:
        name = _ARGUMENTS.get(found[1], found[1].replace("-", "_"))
        value = found[2]
        return name if value is None else f"{name}={value if value.isupper() else repr(value)}"

    parts = text.split("`")
    shell = {number for number, part in enumerate(parts) if number % 2 and not part.startswith("--")}
    return "`".join(
        part if number in shell else _OPTION.sub(argument, part) for number, part in enumerate(parts)
    )


@contextmanager
def arguments_named() -> Iterator[None]:
    """Word the refusals of what a Python function does for who calls it there; see `in_python`."""
    try:
        yield
    except CanalError as error:
        error.args = tuple(in_python(one) if isinstance(one, str) else one for one in error.args)
        raise


def did_you_mean(wanted: str, names: Iterable[str]) -> str:
    """Return "; did you mean 'lung'?" where a name that is there is close to the wanted one, else ``""``.

    It ends every refusal of a name: of a stage, source, version, type, column.
    """
    by_letters = {str(name).casefold(): str(name) for name in names}
    near = get_close_matches(wanted.casefold(), by_letters, n=1, cutoff=_ALIKE)
    return f"; did you mean {by_letters[near[0]]!r}?" if near else ""


def _plain(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def there_are(
    wanted: str,
    names: Iterable[str],
    has: str = "there are",
    show: Callable[[Sequence[str]], str] = _plain,
) -> str:
    """Return how every refusal of an unknown name ends: "; there are blood, lung; did you mean 'lung'?".

    ``has`` says whose names they are ("it has"), ``show`` how they are written (`canal.io.arrays.listed`
    quotes them, and leaves out what is beyond the first).
    """
    known = [str(name) for name in names]
    return f"; {has} {show(known)}{did_you_mean(str(wanted), known)}"


def no_such_file(path: Path, instead: str = "") -> str:
    """Return the refusal of a file that is not there: ``instead`` says what to do, the end what is near.

    A folder that is not there either is named, for then it is the folder's name that is wrong.
    """
    folder = path.parent
    if not folder.is_dir():
        missing = next(one for one in reversed((folder, *folder.parents)) if not one.exists())
        return f"{path}: no such file, for there is no folder {missing}{instead and f'; {instead}'}"
    near = ""
    with suppress(OSError):
        near = did_you_mean(path.name, (one.name for one in folder.iterdir()))
    return f"{path}: no such file{instead and f'; {instead}'}{near}"


_ALIKE = 0.6
_LAYOUT = "\n\t"
_HIDDEN = "***"
_IN_QUERY = re.compile(
    r"((?:^|[?&;])[^=&#;]*(?:pass|pwd|token|secret|key|auth|cred|sig|odbc_connect)[^=&#;]*=)([^&#;]*)",
    re.IGNORECASE,
)
_ENVIRONMENT = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_SERVERS = ("http", "https")
_SHORTEST = 4
"""Letters a secret has at least that is looked for in a text: shorter ones stand in many words."""


def visible(text: object) -> str:
    """Return a text with � for each character that would steer a terminal, or that nobody sees."""
    return "".join(one if one.isprintable() or one in _LAYOUT else "�" for one in str(text))


class Doubt(str):
    """A notice that casts doubt on a result: where others are logged (`LOG`), it is a warning in Python."""

    __slots__ = ()


LOG = logging.getLogger("canal")
"""What a Python caller may want to know: ``logging.basicConfig(level="INFO")`` shows it."""


LAST_LINE = "CANAL_LAST_LINE"
"""Environment variable with a file that processes of one run touch with each line that they tell."""


def tell(text: object) -> None:
    """Write a line for a person to the error stream; all of canal's messages go through here."""
    global _last_line
    _last_line = time.monotonic()
    if shared := os.environ.get(LAST_LINE):
        with suppress(OSError):
            os.utime(shared)
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()


_last_line = time.monotonic()


def seconds_since_line() -> float:
    """Return the seconds since `tell` wrote its last line, here or in a process of the same run.

    Before the first line they count from the start of this process.
    """
    since = time.monotonic() - _last_line
    if shared := os.environ.get(LAST_LINE):
        with suppress(OSError):
            return min(since, max(0.0, time.time() - Path(shared).stat().st_mtime))
    return since


def shown_address(address: str) -> str:
    """Return an address as people may read it: without a password or token, also one with ``@`` or ``/``.

    It may lack its scheme, as one does that was typed wrongly. What begins like a path is one.
    """
    scheme, account, place = _parts(address)
    user, colon, _password = account.partition(":")
    kept = f"{user}:{_HIDDEN}" if colon else _HIDDEN if account and scheme in _SERVERS else user
    before = address[: len(address) - len(account) - len(place)]
    return _IN_QUERY.sub(rf"\1{_HIDDEN}", f"{before}{kept}{place}")


def has_password(address: str) -> bool:
    """Whether an address holds a password or a token."""
    return shown_address(address) != address


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
