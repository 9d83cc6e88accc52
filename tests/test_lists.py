"""Lists that people write with other programs: names of cells to withdraw, and names of cell types."""

import pytest

from canal.app.lineage_sides import read_type_names
from canal.app.withdrawing import read_names_of_cells
from canal.core.errors import DataError


def test_a_list_from_another_program_names_the_same_cells(tmp_path):
    path = tmp_path / "cells.txt"
    path.write_bytes(b"\xef\xbb\xbfA-1\r\n\r\ntumour:B-1\r\nA-1\r\n")
    assert read_names_of_cells(path) == ("A-1", "tumour:B-1")


def test_a_list_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "cells.txt"
    path.write_bytes("A-1\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"cells.txt is no text in UTF-8 .*a name of a cell on each line"):
        read_names_of_cells(path)


def test_a_table_of_types_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "map.csv"
    path.write_bytes(b"\xef\xbb\xbfB cell,B\r\n")
    assert read_type_names(path, ["B cell"]) == {"B cell": "B"}
