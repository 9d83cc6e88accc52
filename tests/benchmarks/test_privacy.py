"""The attacks of benchmarks/privacy.py find what they look for; benchmarks/meanings.py renames as it says."""

import numpy as np
import pytest
from meanings import _wrong_names
from privacy import _sums, auroc, membership

from tests.support.sums import make_sums


@pytest.mark.parametrize("n", [3, 12, 60])
def test_members_are_told_from_others(n):
    levels = np.random.default_rng(n).poisson(1.5, (2 * n, 20)).astype(float)
    scores = membership(_sums(levels[:n]), levels)
    area = auroc(scores[:n].tolist(), scores[n:].tolist())
    assert area == 1.0 if n < 20 else area > 0.6


def test_chance_is_a_half():
    assert auroc([0.0, 1.0], [0.0, 1.0]) == 0.5


def test_names_are_exchanged_and_given_to_types_of_the_own_lineage():
    own, other = make_sums({"first": ("B", "NK", "T")}, n=9), make_sums({"second": ("B", "Mono", "T")}, n=9)
    kinds = {}
    for kind, names in _wrong_names(own, other):
        kinds.setdefault(kind, []).append(names)
    assert kinds["two names exchanged, of which the other lineage has both"] == [{"B": "T", "T": "B"}]
    assert kinds["a type renamed that the other lineage has not at all"] == [{"Mono": "NK"}]
    assert {"B": "NK"} in kinds["a type renamed that the other lineage has under its own name"]
