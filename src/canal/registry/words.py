"""What people may write into the registry for ever: names and reasons that can be shown anywhere."""

import unicodedata

from canal.core.errors import RegistryError

LONGEST_NAME = 200
LONGEST_REASON = 2000

_CONTROL = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories that could break a line, turn the writing direction, or not be written at all."""


def name(text: str, what: str) -> str:
    """Return the name of a person, a team or a program, without outer spaces.

    Raises
    ------
    RegistryError
        If it is empty, longer than 200 characters, or holds characters that cannot be seen.
    """
    return _checked(text, what, LONGEST_NAME)


def reason(text: str, what: str = "the reason (--why)") -> str:
    """Return a reason of at most 2,000 characters; see `name`."""
    return _checked(text, what, LONGEST_REASON)


def _checked(text: str, what: str, longest: int) -> str:
    stripped = text.strip()
    if not stripped:
        raise RegistryError(f"{what} is empty: say it in a few words")
    if len(stripped) > longest:
        raise RegistryError(f"{what} has {len(stripped):,} characters; at most {longest:,} are kept")
    hidden = sorted({ascii(one) for one in stripped if unicodedata.category(one) in _CONTROL})
    if hidden:
        raise RegistryError(
            f"{what} holds characters that cannot be seen ({', '.join(hidden[:5])}): write it on one line "
            "in plain text"
        )
    return stripped
