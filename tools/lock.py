"""Locks of all packages that canal and its extras need, with hashes, for every Python and system it supports.

    python tools/lock.py [--upgrade PACKAGE ...]

Asks a package index by `uv` (pip install uv) and writes requirements.lock, the one source of versions: what
it names stays unless `--upgrade` names it. constraints.txt is written from it, without hashes: pip takes none
where canal itself is installed from its tree (tools/setup.sh).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, CONSTRAINTS = "requirements.lock", "constraints.txt"
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*==[^\s;\\]+)( ; [^\\]+?)?\s*\\?$", re.MULTILINE)


def main() -> None:
    """Resolve, write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upgrade", nargs="*", default=[], metavar="PACKAGE", help="to its newest version")
    upgraded = parser.parse_args().upgrade
    if shutil.which("uv") is None:
        sys.exit("lock: uv resolves the versions, and is not on PATH: python -m pip install uv")
    old = (ROOT / LOCK).read_text(encoding="utf-8")
    try:
        lock = resolved(constraints(old), {_plain(package) for package in upgraded})
    except subprocess.CalledProcessError as error:
        sys.exit(f"lock: {LOCK} is as it was; uv says: {error.stderr.strip()}")
    pins = constraints(lock)
    (ROOT / LOCK).write_text(lock, encoding="utf-8")
    (ROOT / CONSTRAINTS).write_text(pins, encoding="utf-8")
    print(f"lock: {len(pins.splitlines())} packages in {LOCK} and {CONSTRAINTS}")


def resolved(kept: str, upgraded: set[str]) -> str:
    """Return the lock of pyproject.toml with all extras, where versions stay but ``upgraded`` ones.

    They are given to uv as constraints: as a former output it would prefer them, and leave them for others.
    """
    stay = [pin for pin in kept.splitlines() if _plain(pin.partition("==")[0]) not in upgraded]
    command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes"]
    options = ["--all-extras", "--no-header", "--no-annotate", "--quiet", "pyproject.toml"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as constraint:
        constraint.write("\n".join(stay))
        constraint.flush()
        done = subprocess.run(
            [*command, "--constraint", constraint.name, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    return done.stdout


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints(lock: str) -> str:
    """Return the versions of a lock, one a line, with the systems that they are for and without hashes."""
    return "".join(f"{pin}{where}\n" for pin, where in _PIN.findall(lock))


if __name__ == "__main__":
    main()
