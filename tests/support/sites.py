"""Three sites on one basis, each with one stage that it learned by sums, for merging and sharing."""

from __future__ import annotations

from pathlib import Path

import pytest

from canal.core.digests import file_digest
from tests.pipeline.conftest import Line, learned_once
from tests.support.cells import make_adata, write_adata
from tests.support.methods import N_GENES, empty_database, learn_here, make_line, with_database

SITES = ("first", "second", "third")
NEW_CELLS = {"T": 30, "DC": 40, "Mast": 30}
"""Of the third site, which no other test learns from."""


def learned_sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Line]:
    """Make and learn the sites once for all processes of the suite; two adopt the basis of the first.

    The first and the second have the stages of `tests.support.methods.learned_by`.
    """
    first = _site("first", None, tmp_path_factory)
    basis = tmp_path_factory.mktemp("basis") / "lab.json"
    first.canal("basis", "export", "1", "-o", str(basis))
    return {"first": first} | {name: _site(name, basis, tmp_path_factory) for name in SITES[1:]}


def _site(stage: str, basis: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Line:
    empty = empty_database(tmp_path_factory)

    def make(root: Path) -> Line:
        line = make_line(root, {stage: {}}, continual={"method": "exact"})
        if stage == "third":
            raw = root / "raw" / "third.h5ad"
            write_adata(make_adata(NEW_CELLS, N_GENES, seed=77, batches=("b1", "b2")), raw)
            line.edit(lambda document: document["sources"]["third"].update(sha256=file_digest(raw)))
        if basis is not None:
            line.canal("basis", "adopt", str(basis))
        return with_database(line, empty)

    def learn(line: Line) -> str:
        learn_here(line)
        return ""

    return learned_once(tmp_path_factory, f"site-{stage}", make, learn)[0]
