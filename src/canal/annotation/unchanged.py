"""Telling that an input changed while it was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from canal.core.errors import DataError


@dataclass(frozen=True)
class Fingerprint:
    """What the file system says of a file, or of every file in a folder: inode, size, time of change."""

    path: Path
    files: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Return the fingerprint as it is now.

        Raises
        ------
        DataError
            If the file is not there or cannot be looked at.
        """
        try:
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            seen = [(file, file.stat()) for file in files]
        except OSError as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
            raise DataError(f"{path}: {what}") from error
        return cls(
            path,
            tuple((str(file.relative_to(path)), s.st_ino, s.st_size, s.st_mtime_ns) for file, s in seen),
        )

    def check(self) -> None:
        """Raise `DataError` if the file is no longer the one that was looked at."""
        if Fingerprint.of(self.path) != self:
            raise DataError(
                f"{self.path} changed while it was read, so its labels would be those of no file: "
                "wait until the program that writes it is done, then try again; nothing was written"
            )
