"""A small part of `python -m tests.faults.tampering`: what is changed is found, and named."""

import pytest

from tests.faults.tampering import change_cells, flip_files, hand_in_bundles
from tests.pipeline.conftest import copied

pytestmark = pytest.mark.pipeline


def whole(count, tried):
    assert count.missed == []
    assert count.tried == count.found == count.named >= tried


@pytest.mark.chaos
def test_flipped_bytes_and_changed_cells_are_named(learned, tmp_path):
    line = copied(learned[0], tmp_path / "project")
    whole(flip_files(line.project(), 10, seed=1), 10)
    whole(change_cells(line.project(), 10), 10)


def test_malformed_bundles_are_refused_and_nothing_is_registered(learned, tmp_path):
    whole(hand_in_bundles(copied(learned[0], tmp_path / "project"), tmp_path, 4, seed=1), 4)
