"""Partial results of a long run, kept on disk so that --resume can continue an interrupted run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from canal.core.digests import canonical_json, json_digest
from canal.core.errors import CanalError, DataError
from canal.core.files import new_file, parse_json, read_json, write_json
from canal.io.arrays import reading
from canal.io.hdf5 import open_hdf5

if TYPE_CHECKING:
    import pandas as pd

_JOB, _FRAME, _COLUMNS = "job.json", "frame", "columns"
_EVERY = 20.0
"""Seconds of work that a kill may cost."""


def parts_folder(target: Path) -> Path:
    """Return the hidden folder beside an output that holds its partial results."""
    return target.parent / f".{target.name[:100]}.canal-parts"


class Parts:
    """The partial results of a job, in the order of its cells; use it in a ``with`` block around the work.

    Results are kept when the job is interrupted or killed, or when the output of a long job cannot be
    written; they are removed when the job succeeds or its input is refused. A short job keeps nothing.

    Parameters
    ----------
    folder
        Where results are kept.
    job
        Returns everything that determines the results, as JSON values: results of another job are not used.
    resume
        Whether to start from existing results; otherwise they are removed.
    notice
        Receives messages: where a later run can resume, or why results cannot be kept.
    """

    def __init__(
        self, folder: Path, job: Callable[[], Any], resume: bool, notice: Callable[[str], None]
    ) -> None:
        self._folder, self._job, self._resume, self._notice = folder, job, resume, notice
        self.frames: list[pd.DataFrame] = []
        self.done = 0
        self.labelled = False
        """Whether every cell is labelled, so that a later error concerns the output alone."""
        self._unsaved: list[pd.DataFrame] = []
        self._last, self._broken = time.monotonic(), False

    def __enter__(self) -> Parts:
        for name in ("pandas", "anndata.io"):  # half imported by Ctrl-C, they could not save what is done
            import_module(name)
        if self._resume and self._folder.is_dir():
            self._load()
            self._notice(f"resuming after the first {self.done:,} cells")
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None or not self._worth_keeping(kind):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        self._save()
        if not self.done or self._broken:
            return
        rest = f"--resume continues after the first {self.done:,} cells"
        if isinstance(error, KeyboardInterrupt):
            error.add_note(rest)  # the command line says both in one line
        else:
            self._notice(f"interrupted: {rest}")

    def _worth_keeping(self, kind: type[BaseException]) -> bool:
        """Return whether to keep results after an error: after an interruption, or those of a long job."""
        if not self.labelled and not issubclass(kind, Exception):
            return True
        refused = issubclass(kind, CanalError) and not self.labelled
        return self._folder.is_dir() and not refused

    def add(self, frame: pd.DataFrame) -> None:
        """Add the results of the next cells."""
        self.frames.append(frame)
        self._unsaved.append(frame)
        self.done += len(frame)
        if time.monotonic() - self._last >= _EVERY:
            self._save()

    def _save(self) -> None:
        """Write unsaved results as one file, atomically."""
        import pandas as pd
        from anndata.io import write_elem

        if not self._unsaved or self._broken:
            return
        frame = pd.concat(self._unsaved, ignore_index=True)
        try:
            self._folder.mkdir(0o700, exist_ok=True)  # other users may not be allowed to see these cells
            if not (self._folder / _JOB).is_file():
                write_json(self._folder / _JOB, json_digest(self._job()))
            place = new_file(self._folder / f"{self.done - len(frame):012d}.h5")
            with place as temporary, h5py.File(temporary, "w") as file:
                file[_COLUMNS] = canonical_json(list(frame))  # a name with / would be a group of HDF5
                rows, columns = (map(str, range(n)) for n in frame.shape)
                write_elem(file, _FRAME, frame.set_axis(list(rows)).set_axis(list(columns), axis=1))
        except OSError as error:
            self._broken = True
            self._notice(f"{self._folder} cannot be written ({error}), so --resume cannot continue this run")
            return
        self._unsaved, self._last = [], time.monotonic()

    def _load(self) -> None:
        from anndata.io import read_elem

        with reading(self._folder, _JOB):
            digest = read_json(self._folder / _JOB)
        if digest != json_digest(self._job()):
            raise DataError(
                f"{self._folder} holds results of another input, model or options; "
                "leave --resume out to start again"
            )
        for path in sorted(self._folder.glob("[0-9]*.h5")):
            with reading(path, "answers"), open_hdf5(path) as file:
                frame = read_elem(file[_FRAME]).reset_index(drop=True)
                frame = frame.set_axis(parse_json(file[_COLUMNS][()]), axis=1)
            if int(path.stem) != self.done:
                break
            self.frames.append(frame)
            self.done += len(frame)
