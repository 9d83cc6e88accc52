"""What a terminal may be shown: names of files, cells and types hold whatever somebody wrote into them."""

import sys

_LAYOUT = "\n\t"


def visible(text: object) -> str:
    """Return a text with � for each character that would steer a terminal, or that nobody sees."""
    return "".join(one if one.isprintable() or one in _LAYOUT else "�" for one in str(text))


def tell(text: object) -> None:
    """Write a line for a person to the error stream; all of canal's messages go through here."""
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()
