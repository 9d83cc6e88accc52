"""What the comparison of novelty scores measures, and what it says."""

from pathlib import Path
from types import SimpleNamespace

import novelty
import numpy as np
import pytest
import torch
from rich.console import Console

from canal.config.sections import Novelty
from canal.continual.held_out_heads import CHOICES, GeneScores
from canal.model.centroids import PARTS

pytestmark = pytest.mark.xdist_group("novelty")  # what its tests share is made once

SETTINGS = Novelty(mixtures=50, shadow_epochs=25)
TYPES = ("B", "NK", "T", "plasma")


def part(counts, seed):
    """Gene scores of 20 genes, five markers a type."""
    random = np.random.default_rng(seed)
    types = np.array([name for name, n in counts.items() for _ in range(n)], dtype=object)
    scores = random.uniform(0, 1, (len(types), 21)).astype(np.float32)
    for row, name in enumerate(types):
        first = 5 * TYPES.index(name)
        scores[row, first : first + 5] += 3
    return torch.from_numpy(scores), types


@pytest.fixture(scope="module")
def cases():
    many = dict.fromkeys(TYPES, 25)
    scores = GeneScores(TYPES, part(many, 0), part(many, 1), part(many, 2))
    noticed = {"B": dict.fromkeys(CHOICES, 0.0) | {PARTS: 1.0}, "T": dict.fromkeys(CHOICES, 0.0) | {(): 1.5}}
    return [novelty.case(name, "one", scores, SETTINGS, 0, noticed) for name in ("plasma", "T")]


def test_every_score_notices_a_type_unlike_the_others(cases):
    found = novelty.means(cases, 0.05)
    assert set(found) == set(novelty.METHODS)
    for method, one in found.items():
        assert one["auroc"] > 0.8, method
    assert found["published + distance + angle"]["auroc"] > 0.99
    assert found[novelty.CANAL]["own_false_unassigned"] < 0.3


def test_a_type_has_no_say_in_what_it_is_noticed_by(cases):
    plasma, t = cases  # of B and T the published score alone is the best, of B all three parts
    for one, method in ((plasma, "published, fixed bounds"), (t, "published + distance + angle")):
        by_rank = [np.argsort(one.scores[name]).tolist() for name in (novelty.CANAL, method)]
        assert by_rank[0] == by_rank[1]


def test_auroc_counts_pairs_and_half_of_ties():
    unknown = np.array([True, True, False, False])
    assert novelty.auroc(np.array([3.0, 1.0, 1.0, 0.0]), unknown) == pytest.approx(3.5 / 4)


def test_the_h_score_is_taken_where_so_many_known_cells_are_called():
    unknown = np.array([False] * 20 + [True] * 4)
    score = np.concatenate([np.arange(20.0), [19.5, 18.5, 30.0, 0.0]])
    # At most 10 %: the threshold is 18, which one known cell and three unknown ones exceed.
    expected = 2 * 0.95 * 0.75 / (0.95 + 0.75)
    assert novelty.h_score(score, unknown, np.ones(24, dtype=bool), 0.1) == pytest.approx(expected)


def test_intervals_are_of_paired_differences_and_repeat(cases):
    one, two = (novelty.differences(cases, 0.05, 20, seed=0) for _ in range(2))
    assert one == two
    assert novelty.PUBLISHED not in one
    for intervals in one.values():
        assert intervals["auroc"][0] <= intervals["auroc"][1]


def test_types_apart_have_means_of_their_own(cases, monkeypatch):
    project = SimpleNamespace(config=SimpleNamespace(threads=1, novelty=SETTINGS, seed=0))
    monkeypatch.setattr(novelty.Project, "open", lambda root: project)
    monkeypatch.setattr(novelty, "cases", lambda project, settings: cases)
    wishes = SimpleNamespace(false_unassigned=0.05, epochs=None, resamples=3, apart=["T"])
    found = novelty.measured(Path("some"), wishes)
    for part, name in ((found, "plasma"), (found["apart"], "T")):
        assert [one["type"] for one in part["cases"]] == [name]
        for method, values in part["methods"].items():
            assert values["auroc"] == part["cases"][0]["auroc"][method]
    for wrong in (["nobody"], ["T", "plasma"]):
        wishes.apart = wrong
        with pytest.raises(SystemExit, match="--apart"):
            novelty.measured(Path("some"), wishes)


def test_the_table_names_every_score(cases, tmp_path):
    found = {"methods": novelty.compare(cases, 0.05, 5, 0), "cases": [{"type": "T"}, {"type": "plasma"}]}
    console = Console(width=200, record=True)
    console.print(novelty.table("embedded", found, 0.05))
    said = console.export_text()
    assert all(method in said for method in novelty.METHODS)
    novelty.draw({"embedded": found, "immune": found}, tmp_path / "novelty.svg")
    assert (tmp_path / "novelty.svg").stat().st_size > 1000
