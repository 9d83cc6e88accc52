"""Let the scripts of an environment start the Python beside them, after its folder was moved or copied.

Usage: ``.venv/bin/python tools/relocate.py .venv``. pip writes absolute paths into what it installs: after
``mv`` they name a Python that is gone, in a copy that of the first folder. Prints how many files changed.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

_PLAIN = re.compile(rb"#!(?P<python>/.+/bin/python[0-9.]*)\n")
_BY_SHELL = re.compile(
    rb"#!/bin/sh\n'''exec' (?P<quote>\"?)(?P<python>/.+/bin/python[0-9.]*)(?P=quote) \"\$0\" \"\$@\"\n' '''\n"
)
"""How pip begins a script whose interpreter has a blank or a path too long for the system in it."""

_LONGEST = 120


def relocate(venv: Path) -> int:
    """Rewrite first lines of scripts, activation and the link to canal's source; return how many files."""
    venv = venv.resolve()
    found = {path: one for path in sorted((venv / "bin").iterdir()) if (one := _interpreter(path))}
    others: set[Path] = set()
    for path, (python, length) in found.items():
        other = python.parents[1]
        if other != venv and other.name == venv.name:  # not a system's Python
            path.write_bytes(_first_lines(venv / "bin" / python.name) + path.read_bytes()[length:])
            others.add(other)
    changed = sum(one[0].parents[1] in others for one in found.values())
    packages = "lib/python*/site-packages"
    patterns = ("bin/[aA]ctivate*", f"{packages}/*canal*", f"{packages}/*canal*.dist-info/direct_url.json")
    texts = [path for pattern in patterns for path in venv.glob(pattern) if path.is_file()]
    return changed + sum(_renamed(path, others, venv) for path in texts)


def _interpreter(path: Path) -> tuple[Path, int] | None:
    """Return the Python that a script names, and how long its first lines are; None for anything else."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as stream:
        beginning = stream.read(4096)
    found = _BY_SHELL.match(beginning) or _PLAIN.match(beginning)
    return None if found is None else (Path(found["python"].decode()), found.end())


def _first_lines(python: Path) -> bytes:
    if " " in str(python) or len(str(python)) > _LONGEST:
        return f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n".encode()
    return f"#!{python}\n".encode()


def _renamed(path: Path, others: set[Path], venv: Path) -> bool:
    """Let a text name this environment and its project instead of another's."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    new = text
    for other in sorted(others, key=lambda one: len(str(one)), reverse=True):
        for was, is_now in ((other, venv), (other.parent, venv.parent)):
            new = re.sub(rf"{re.escape(str(was))}(?![^/\"'\n])", _said(str(is_now)), new)
            new = re.sub(rf"{re.escape(was.as_uri())}(?![^/\"'\n])", _said(is_now.as_uri()), new)
    if new != text:
        path.write_text(new, encoding="utf-8")
    return new != text


def _said(text: str) -> Callable[[re.Match[str]], str]:
    """Return what `re.sub` puts in, backslashes and all."""
    return lambda _: text


if __name__ == "__main__":
    sys.stdout.write(f"{relocate(Path(sys.argv[1]))}\n")
