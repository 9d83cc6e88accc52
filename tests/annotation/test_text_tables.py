"""Tables of cells and genes in text are read as the same cells in h5ad, or refused with line and column."""

import gzip

import anndata
import numpy as np
import pytest

from canal.annotation.annotate import annotate_adata, annotate_h5ad, annotate_path, label_h5ad
from canal.annotation.naming import Naming
from canal.annotation.options import Callbacks, Options
from canal.core.errors import LOG, DataError
from canal.io import text_table
from canal.io.formats import TEXT, format_of

LABELS = ["canal_cell_type", "canal_best_type", "canal_is_novel", "canal_low_quality"]


def write(adata, path, separator=",", **how):
    text = adata.to_df().astype(int).to_csv(sep=separator, **how)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def transposed(adata, path):
    path.write_text(adata.to_df().astype(int).T.to_csv())
    return path


WRITERS = {
    "csv": lambda adata, folder: write(adata, folder / "cells.csv"),
    "tsv": lambda adata, folder: write(adata, folder / "cells.tsv", "\t"),
    "csv.gz": lambda adata, folder: write(adata, folder / "cells.csv.gz"),
    "quoted": lambda adata, folder: write(adata, folder / "cells.txt", quoting=2, lineterminator="\r\n"),
    "of R": lambda adata, folder: write_as_r(adata, folder / "cells.tsv"),
    "genes in rows": lambda adata, folder: transposed(adata, folder / "cells.csv"),
}


def write_as_r(adata, path):
    """write.table names no column of row names, and its byte order mark is Excel's."""
    text = adata.to_df().astype(int).to_csv(sep="\t").split("\t", 1)[1]
    path.write_text("\ufeff" + text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_cells_have_the_same_labels(annotator, adata, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(text_table, "_VALUES", 100)  # so that a table takes many blocks
    source = WRITERS[kind](adata, tmp_path)
    wanted, told = annotate_adata(annotator, adata), []
    assert format_of(source) == TEXT
    annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(chunk_cells=4), Callbacks(told.append))
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(found.obs_names) == list(adata.obs_names)
    assert list(found.var_names) == list(adata.var_names)
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    assert found.obs[LABELS].astype(str).equals(wanted[LABELS].astype(str))
    how = "genes by cells (the table is transposed)" if kind == "genes in rows" else "cells by genes"
    assert told[0].endswith(f"so it was read as {how}")
    hits = "0 of the model's 20 genes are names of columns, 20 of rows"
    assert (hits in told[0]) == (kind == "genes in rows")


def test_ensembl_ids_tell_the_genes_where_symbols_do_not(annotator, adata, tmp_path):
    ids = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    named = adata.copy()
    named.var_names = ids
    source = transposed(named, tmp_path / "cells.csv")
    pairs = zip(ids, adata.var_names, strict=True)
    (tmp_path / "map.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    options = Options(naming=Naming(gene_map=tmp_path / "map.tsv"))
    assert (
        label_h5ad(annotator, source, options)[LABELS]
        .astype(str)
        .equals(annotate_adata(annotator, adata)[LABELS].astype(str))
    )


LINES = "name,GENE000,GENE001\n", "a,1,0\n", "b,0,2\n"
WRONG = {
    "empty": ("", "the table is empty"),
    "no cells": (LINES[0], "there are no cells"),
    "no genes": ("name\na\n", "parted by commas or tabs, found neither"),
    "semicolons": ("name;A;B\na;1,5;2\n", r"found (semicolons|neither)|has \d+ values"),
    "numbers first": ("a,1,0\nb,0,2\n", "the first line holds numbers alone, such as '1'"),
    "too few": (LINES[0] + LINES[1] + "b,0\n", "line 3 has 1 values, the first line names 2 columns"),
    "too many": (LINES[0] + LINES[1] + "b,0,2,3\n", "line 3 has 3 values"),
    "text": (LINES[0] + LINES[1] + "b,0,T cell\n", r"line 3, column 3 \('GENE001'\), found 'T cell'"),
    "quoted text": (LINES[0] + 'a,1,"x,y"\n', r"line 2, column 3 \('GENE001'\), found 'x,y'|line 2 has"),
    "missing": (LINES[0] + "\n" + "a,,0\n", r"line 3, column 2 \('GENE000'\), found nothing: .*write 0"),
    "nan": (LINES[0] + "a,0,nan\n", r"line 2, column 3 \('GENE001'\), found 'nan'"),
    "too large": (LINES[0] + "a,1e999,0\n", "line 2, column 2 .*found '1e999'"),
    "a line end within": (LINES[0] + "a,1\r2,0\n", "no number|expected a number"),
    "NA": (LINES[0] + "a,NA,0\n", "found 'NA'"),
    "twice": ("".join(LINES) + "a,1,1\n", "found 1 names of cells again, such as 'a'"),
    "no cell's name": (LINES[0] + ",1,0\n" + LINES[2], "found 1 of 2 cells without, such as cell number '1'"),
    "a quote in a gene": (
        'name,GENE000,GE"NE001\n' + LINES[1],
        "1 names with one inside, such as 'GE\"NE001'",
    ),
    "a quote in a cell": (LINES[0] + 'a"b,1,0\n', "1 names with one inside, such as 'a\"b'"),
    "an open quote": ('name,GENE000,"GENE001\n' + LINES[1], "missing or too many .*GENE001"),
    "a quote too many": ('name,GENE000,"GENE001"x\n' + LINES[1], "missing or too many .*GENE001"),
    "binary": ("name,A\n\x00\x01\x02", "line 2 holds zero bytes, so the file is no text"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_table_is_refused_with_the_place(annotator, tmp_path, what):
    text, message = WRONG[what]
    source = tmp_path / "cells.csv"
    source.write_text(text)
    with pytest.raises(DataError, match=message):
        annotate_h5ad(annotator, source, tmp_path / "out.h5ad", Options(force=True))
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"]


def test_names_that_are_quoted_whole_are_read(annotator, adata, tmp_path):
    quoted = adata.copy()
    quoted.var_names = [f'"{name}"' for name in quoted.var_names]
    source = write(quoted, tmp_path / "cells.csv")
    assert '"""CD3D"""' in source.read_text()
    found = label_h5ad(annotator, source)[LABELS].astype(str)
    assert found.equals(annotate_adata(annotator, adata)[LABELS].astype(str))


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-30], lambda whole: whole[:20] + b"x" * 40 + whole[60:]]
)
def test_a_damaged_archive_is_refused(annotator, adata, tmp_path, damage):
    source = write(adata, tmp_path / "cells.csv.gz")
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(DataError, match=r"cells\.csv\.gz: cannot be read"):
        label_h5ad(annotator, source)


def test_latin_letters_are_refused_by_name(annotator, tmp_path):
    source = tmp_path / "cells.csv"
    source.write_bytes("name,G\u00e9NE\na,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="as a table in UTF-8"):
        label_h5ad(annotator, source)


def test_one_line_without_an_end_is_refused(annotator, tmp_path, monkeypatch):
    monkeypatch.setattr(text_table, "_BYTES", 1000)
    source = tmp_path / "cells.csv.gz"
    source.write_bytes(gzip.compress(b"name," + b"G" * 2_000_000))
    with pytest.raises(DataError, match="line 1 has more than 1,000 bytes"):
        label_h5ad(annotator, source)


def test_hdf5_is_hdf5_however_it_is_called(annotator, adata, tmp_path):
    adata.write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "in.h5ad").rename(tmp_path / "in.csv")
    assert len(label_h5ad(annotator, tmp_path / "in.csv")) == adata.n_obs


def test_from_python_what_a_table_was_read_as_is_logged(annotator, adata, tmp_path, monkeypatch, recwarn):
    logged = []
    monkeypatch.setattr(LOG, "info", logged.append)
    annotate_path(annotator, transposed(adata, tmp_path / "cells.csv"))
    assert logged[0].endswith("so it was read as genes by cells (the table is transposed)")
    assert not [one for one in recwarn if "read as" in str(one.message)]
