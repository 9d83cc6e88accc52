"""A list of genes in each form it comes in, and what is no such list."""

import json

import pytest

from canal.core.errors import DataError
from canal.data.genes import read_gene_list
from tests.support.cells import make_adata, write_adata


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.txt", "CD4\nHLA-A\nMS4A1\n"),
        ("g.csv", 'CD4\r\n"HLA-A"\r\nMS4A1'),
        ("g.tsv", "\ufeffCD4\n HLA-A \nMS4A1\n\n"),
        ("g.json", json.dumps(["CD4", "HLA-A", "MS4A1"])),
        ("genes", "CD4\nHLA-A\nMS4A1"),
    ],
)
def test_one_symbol_a_line_in_the_files_order(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_gene_list(tmp_path / name) == ("CD4", "HLA-A", "MS4A1")


def test_the_genes_of_an_h5ad_file(tmp_path):
    adata = make_adata({"B": 3}, n_genes=20)
    assert read_gene_list(write_adata(adata, tmp_path / "g.h5ad")) == tuple(adata.var_names)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.txt", "A\nB\nA\nB\nC\n", r"2 gene symbol\(s\) occur more than once, such as A, B"),
        ("g.txt", "A\n\nB\n", r"found 1 empty one\(s\), the first is number 2"),
        ("g.txt", "", "expected gene symbols, found none"),
        ("g.csv", "0,A\n1,B\n", r"found 2 line\(s\) of several columns, such as line 1"),
        ("g.tsv", "A\nB\tb\n", r"1 line\(s\) of several columns, such as line 2"),
        ("g.json", '{"A": 1}', "must hold a list of gene symbols, found dict"),
        ("g.json", "[1, 2]", "must hold a list of gene symbols"),
        ("g.json", "[", "is no JSON"),
    ],
)
def test_what_is_no_list_of_genes_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_gene_list(tmp_path / name)


def test_bytes_and_missing_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file; give a file"):
        read_gene_list(tmp_path / "g.txt")
    (tmp_path / "g.txt").write_bytes(b"\xff\xfe\x00A")
    with pytest.raises(DataError, match="no text of gene symbols"):
        read_gene_list(tmp_path / "g.txt")
