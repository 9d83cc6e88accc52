"""What an annotation is written as: decided by the input's format and the output's name, before any work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from canal.annotation.formats import H5AD, ZARR, format_of, open_cells
from canal.annotation.new_output import TABLES, write_new, write_table
from canal.annotation.output import write_copy, write_zarr_copy
from canal.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from canal.annotation.query import TabledFile


_COPIES = (".h5ad", ".h5", ".hdf5", "")
"""How a labelled copy that is an HDF5 file may end: under .tsv or .loom nobody would look for one."""


@dataclass(frozen=True)
class Output:
    """An output that may be written.

    Attributes
    ----------
    source, target : Path
    form : str
        The input's format.
    is_table : bool
        Whether only the labels are written.
    """

    source: Path
    target: Path
    form: str
    is_table: bool

    @classmethod
    def find(cls, source: Path, target: Path, only_obs: bool) -> Output:
        """Return the output that a target's name stands for.

        Raises
        ------
        DataError
            If the input is of no known format, or cannot become what the name stands for.
        """
        form, suffix = format_of(source), target.suffix
        if suffix in TABLES or only_obs:
            if suffix not in TABLES:
                raise DataError(f"{target}: a table of labels alone is {' or '.join(TABLES)}: name it so")
            return cls(source, target, form, is_table=True)
        if (form == ZARR) != (suffix == ".zarr") or (form != ZARR and suffix.lower() not in _COPIES):
            wanted = "OUT.zarr" if form == ZARR else "OUT.h5ad"
            raise DataError(
                f"{target}: the labelled copy of a {form} input is {wanted}; give that, or OUT.csv or "
                "OUT.parquet for the labels alone"
            )
        return cls(source, target, form, is_table=False)

    def write(self, columns: pd.DataFrame, note: str, on_whole: Callable[[str], None]) -> list[str]:
        """Write it, whole or not at all; return what an earlier labelling wrote and was left out.

        Raises
        ------
        DataError
            If that cannot be done.
        """
        if self.is_table:
            write_table(self.target, columns, note, on_whole, like=self.source)
            return []
        if self.form in (ZARR, H5AD):
            write = write_zarr_copy if self.form == ZARR else write_copy
            return write(self.source, self.target, columns, note, on_whole)
        with open_cells(self.source) as file:
            return write_new(cast("TabledFile", file), self.target, columns, note, on_whole)
