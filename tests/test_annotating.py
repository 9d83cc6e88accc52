import json

import pytest

from canal.app import annotating
from canal.app.annotating import annotate
from canal.app.models import FoundModel
from canal.app.origins import Origin, digest_of, origin
from canal.core.digests import canonical_json, file_digest
from canal.core.errors import LOG, DataError, Doubt
from tests.support.cells import gene_names, make_adata
from tests.support.models import make_annotator


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cells.h5ad"
    path.write_bytes(b"cells" * 200_000)
    return path


def test_the_input_is_told_by_name_size_and_digest(file):
    with Origin(file) as found:
        assert found["input"] == {"name": "cells.h5ad", "bytes": 1_000_000, "sha256": file_digest(file)}
        assert found.get("sheet") is None
        assert list(json.loads(canonical_json(dict(found)))) == ["input", "time"]


def test_the_digest_of_a_folder_is_that_of_its_files(file):
    assert origin(file.parent)["input"]["sha256"] == digest_of(file.parent)
    assert origin(file.parent)["input"]["bytes"] == 1_000_000


def test_an_input_that_changes_meanwhile_has_no_digest(file):
    with Origin(file) as found:
        file.write_bytes(b"others")
        with pytest.raises(DataError, match="changed while it was read"):
            found["input"]


def test_what_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Origin(tmp_path / "none.h5ad")


def test_nobody_waits_for_a_digest_that_is_given_up(file):
    looked = []

    def given_up():
        looked.append(True)
        return len(looked) > 1

    assert digest_of(file, given_up) != file_digest(file)
    assert len(looked) == 2


def test_what_informs_is_logged_and_what_casts_doubt_warns(monkeypatch, recwarn, capsys):
    """Which model labels looked like a fault in a notebook: `UserWarning: no champion yet ...`."""
    informs, doubts = "no champion yet: version 2, the newest, labels", "nothing proves how it was made"

    def find_model(model, root, effort, notice):
        notice(informs)
        notice(Doubt(doubts))
        return FoundModel({"version": 2}, make_annotator)

    monkeypatch.setattr(annotating, "find_model", find_model)
    cells = make_adata({"B": 5, "NK": 4}, n_genes=20)
    cells.var_names = gene_names(20)
    annotate(cells)
    assert "".join(capsys.readouterr()) == ""  # by default nobody is told
    logged = []
    monkeypatch.setattr(LOG, "info", logged.append)
    annotate(cells)
    warned = [str(one.message) for one in recwarn if one.category is UserWarning]
    assert doubts in warned
    assert informs not in warned
    assert logged == [informs]
