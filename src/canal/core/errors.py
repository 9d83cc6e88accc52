"""The errors canal raises on purpose: each says what was expected, what was found and what to do."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the system's errors that want of room causes."""

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Numbers of the system's errors that want of rights causes."""


LONGEST = 2000
"""Characters of a message: what an input holds may be quoted in it, however long that is."""


class CanalError(Exception):
    """Root of every error a user may meet; the command line prints it without a traceback.

    Of a message of more than `LONGEST` characters the middle is left out: what was expected stands at its
    beginning, what to do at its end.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= LONGEST:
            return text
        marker = f" [... {len(text) - LONGEST:,} characters more ...] "
        end = LONGEST // 3
        return text[: LONGEST - end - len(marker)] + marker + text[-end:]


class ConfigError(CanalError):
    """params.yaml does not describe a run: names the path of the key."""


class SourceError(CanalError):
    """A source cannot be fetched, or its bytes are not the declared ones."""


class DataError(CanalError):
    """An h5ad file cannot be read the way its declaration says."""


class GateError(CanalError):
    """A stage did not pass its gate, or the verdict is not for these bytes."""


class ModelError(CanalError):
    """A stored model is incomplete, damaged, or of a format this canal does not know."""


class SumsError(CanalError):
    """Sums of the exact memory cannot be made, put together, or read."""


class TrainingError(CanalError):
    """A stage cannot be learned from what it was given."""


class HistoryError(CanalError):
    """Something asked for would rewrite what was already learned."""


class RegistryError(CanalError):
    """The registry does not hold what was asked for, or holds it damaged."""


class ReadOnlyError(RegistryError):
    """Something is to be written where this user, or anybody, may only read."""


class LedgerError(RegistryError):
    """The ledger does not hold, or an entry cannot be added to it."""


class PolicyError(RegistryError):
    """A version does not pass the promotion policy."""


class AuditError(RegistryError):
    """Something in the registry is not what it was registered as."""


class SigningError(RegistryError):
    """A key or a keyring cannot be used."""
