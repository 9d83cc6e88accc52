"""Rebuild the table of the Cell Ontology that canal ships, from the package that it was taken from.

    pip download --no-deps --only-binary :all: cellxgene-ontology-guide==1.11.1
    python tools/cell_ontology.py cellxgene_ontology_guide-1.11.1-py3-none-any.whl

What is kept of each term is its id, name and is_a parents. Left out are obsolete terms, parts of cells, and
cells of no animal: of bacteria, fungi and plants, and those that exist in a dish alone; synonyms,
too: the one term with "alpha cell" among them is a neuron of the retina. The ontology is CC BY 4.0; the
package of CZI, which has it as JSON, is MIT.
"""

import json
import sys
import zipfile
from typing import Any

import pyarrow
from shipped_table import make

from canal.data.cell_ontology import RELEASE, ROOT, TABLE

PACKAGE, VERSION = "cellxgene-ontology-guide", "1.11.1"
WHEEL = "621276831bc021aab348f4d6119fad033282dff3126a8f2dbe8b293fbce68aca"
MEMBER = f"cellxgene_ontology_guide/data/CL-ontology-{RELEASE}.json.zst"
HEAD = f"""\
# Terms of the Cell Ontology, release {RELEASE}: id, name, parents (is_a).
# Source: http://purl.obolibrary.org/obo/cl.obo, as JSON in {MEMBER}
# of {PACKAGE} {VERSION} (MIT licence; wheel sha256 {WHEEL}).
# Licence of the ontology: CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
# Cite: Diehl et al., The Cell Ontology 2016, J Biomed Semantics 7, 44 (2016), doi:10.1186/s13326-016-0088-7
# Changed: left out are definitions, synonyms, obsolete terms, and cells of bacteria, fungi, plants, cultures.
# Made by: tools/cell_ontology.py
"""

NO_ANIMAL = {
    "CL:0000520": "prokaryotic cell",
    "CL:0000521": "fungal cell",
    "CL:0000628": "photosynthetic cell",
    "CL:0000725": "nitrogen fixing cell",
    "CL:0001034": "cell in vitro",
}
"""Terms that are left out with all that are below them."""


def rows_of(terms: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the table, sorted by id; ancestors at a distance of 1 are parents."""
    kept = {
        one: term
        for one, term in terms.items()
        if not term["deprecated"]
        and not NO_ANIMAL.keys() & {one, *term["ancestors"]}
        and ROOT in {one, *term["ancestors"]}
    }
    rows = []
    for one, term in sorted(kept.items()):
        parents = sorted(above for above, steps in term["ancestors"].items() if steps == 1 and above in kept)
        if parents or one == ROOT:  # parts of cells have none
            rows.append("\t".join([one, term["label"], " ".join(parents)]))
    return rows


def terms_of(archive: zipfile.ZipFile) -> list[str]:
    """Return the rows of the package's wheel."""
    packed = pyarrow.BufferReader(archive.read(MEMBER))
    with pyarrow.CompressedInputStream(packed, "zstd") as stream:
        return rows_of(json.loads(stream.read()))


if __name__ == "__main__":
    sys.exit(make(TABLE, HEAD, "terms", WHEEL, terms_of))
