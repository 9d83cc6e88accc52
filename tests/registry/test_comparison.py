"""Champion and candidate joined cell by cell."""

import pandas as pd
import pytest

from canal.core.errors import RegistryError
from canal.registry.promotion.comparing import Comparison, Sampling, compare_stage

SAMPLING = Sampling(confidence=0.95, resamples=200, seed=0)


def table(answers, truth=None, prefix="c"):
    ids = [f"{prefix}{i}" for i in range(len(answers))]
    return pd.DataFrame({"cell_id": ids, "truth": truth or ["B"] * len(answers), "predicted": answers})


def test_types_with_few_cells_are_named_and_not_judged():
    truth = ["B"] * 6 + ["T"] * 2
    champion = table(["B"] * 6 + ["T"] * 2, truth)
    candidate = table(["B"] * 5 + ["T"] * 3, truth)
    found = compare_stage(champion, candidate, 3, SAMPLING)
    assert (found.whole.n, found.whole.lost) == (8, 1)
    assert list(found.types) == ["B"]
    assert found.types["B"].lost == 1
    assert found.too_few == {"T": 2}


def test_the_order_of_the_cells_does_not_matter():
    champion, candidate = table(list("BBTB")), table(list("BTTB"))
    shuffled = candidate.sample(frac=1, random_state=3)
    assert compare_stage(champion, shuffled, 1, SAMPLING) == compare_stage(champion, candidate, 1, SAMPLING)


def test_other_cells_or_other_truths_are_refused():
    with pytest.raises(RegistryError, match="none is shared"):
        compare_stage(table(["B"]), table(["B"], prefix="d"), 1, SAMPLING)
    with pytest.raises(RegistryError, match="1 of 1 cells have another true type"):
        compare_stage(table(["B"], ["B"]), table(["B"], ["T"]), 1, SAMPLING)


def test_the_document_names_both_versions_and_what_was_not_compared():
    stage = compare_stage(table(["B"]), table(["B"]), 1, SAMPLING)
    document = Comparison(1, 2, {"first": stage}, {"gone": "no cells"}).to_json()
    assert (document["champion"], document["candidate"]) == (1, 2)
    assert document["stages"]["first"]["types"]["B"]["n"] == 1
    assert document["not_compared"] == {"gone": "no cells"}
