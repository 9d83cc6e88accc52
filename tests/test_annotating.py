import json

import pytest

from canal.app.annotating import Origin, digest_of, origin
from canal.core.digests import canonical_json, file_digest
from canal.core.errors import DataError


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
