"""The exceptions of canal: each message says what was expected, what was found and what to do."""

import errno

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
