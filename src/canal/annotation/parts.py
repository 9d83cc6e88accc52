"""Answers kept on disk while a long labelling lasts, so that it can go on where it was interrupted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canal.core.digests import json_digest
from canal.core.errors import CanalError, DataError
from canal.core.files import new_file, read_json, write_json
from canal.data.h5ad_tables import reading

if TYPE_CHECKING:
    import pandas as pd

_JOB = "job.json"
_EVERY = 20.0
"""Seconds of work that a kill may cost."""


def parts_folder(target: Path) -> Path:
    """Return where the answers for an output are kept: a hidden folder beside it."""
    return target.parent / f".{target.name[:100]}.canal-parts"


class Parts:
    """The answers of a job, in the order of its cells; use it in a ``with`` block around all the work.

    They are kept when the work is interrupted or killed, or the output of a long job cannot be written; they
    are removed when it succeeds or the input is refused.
    A job that is short keeps nothing.

    Parameters
    ----------
    folder
        Where they are kept.
    job
        Returns all that decides the answers, as JSON values: those of another job are never used.
    resume
        Whether to begin with what is there; otherwise it is removed.
    notice
        Is told where a later run may go on, and why answers cannot be kept.
    """

    def __init__(
        self, folder: Path, job: Callable[[], Any], resume: bool, notice: Callable[[str], None]
    ) -> None:
        self._folder, self._job, self._resume, self._notice = folder, job, resume, notice
        self.frames: list[pd.DataFrame] = []
        self.done = 0
        self.labelled = False
        """Whether every cell has its answer, so that a later error is about the output alone."""
        self._unsaved: list[pd.DataFrame] = []
        self._last, self._broken = time.monotonic(), False

    def __enter__(self) -> Parts:
        if self._resume and self._folder.is_dir():
            self._load()
            self._notice(f"going on behind the first {self.done:,} cells")
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None or not self._worth_keeping(kind):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        self._save()
        if self.done and not self._broken:
            self._notice(f"interrupted: --resume goes on behind the first {self.done:,} cells")

    def _worth_keeping(self, kind: type[BaseException]) -> bool:
        """Return whether to keep answers after an error: after an interruption, else those of a long job."""
        if not self.labelled and not issubclass(kind, Exception):
            return True
        refused = issubclass(kind, CanalError) and not self.labelled
        return self._folder.is_dir() and not refused

    def add(self, frame: pd.DataFrame) -> None:
        """Take the answers for the next cells."""
        self.frames.append(frame)
        self._unsaved.append(frame)
        self.done += len(frame)
        if time.monotonic() - self._last >= _EVERY:
            self._save()

    def _save(self) -> None:
        """Write what is not yet on disk as one file, whole or not at all."""
        import pandas as pd

        if not self._unsaved or self._broken:
            return
        frame = pd.concat(self._unsaved, ignore_index=True)
        try:
            self._folder.mkdir(0o700, exist_ok=True)  # answers are about cells that others may not see
            if not (self._folder / _JOB).is_file():
                write_json(self._folder / _JOB, json_digest(self._job()))
            with new_file(self._folder / f"{self.done - len(frame):012d}.parquet") as temporary:
                frame.to_parquet(temporary)
        except OSError as error:
            self._broken = True
            self._notice(f"{self._folder} cannot be written ({error}), so --resume will not know of this run")
            return
        self._unsaved, self._last = [], time.monotonic()

    def _load(self) -> None:
        import pandas as pd

        with reading(self._folder, _JOB):
            known = read_json(self._folder / _JOB)
        if known != json_digest(self._job()):
            raise DataError(
                f"{self._folder} holds answers for another input, model or other options; "
                "leave --resume out to begin anew"
            )
        for path in sorted(self._folder.glob("[0-9]*.parquet")):
            with reading(path, "answers"):
                frame = pd.read_parquet(path)
            if int(path.stem) != self.done:
                break
            self.frames.append(frame)
            self.done += len(frame)
