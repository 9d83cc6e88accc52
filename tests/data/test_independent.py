"""`split.rule: independent`: a cell's set is its own draw, whatever other cells there are."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from canal.config.sections import Split
from canal.core.digests import file_digest
from canal.data.split import (
    RESERVE,
    SETS,
    SUMMED,
    described_types,
    only_train,
    read_split,
    split_stage,
    types_lacking,
    write_split,
)
from canal.memory.sums import add_up
from tests.data.test_split import make_obs
from tests.support.sums import make_basis

ALONE = Split(rule="independent")
CAPPED = Split(rule="independent", max_cells_per_type=10)
N_GENES = 6

few = settings(deadline=None, max_examples=30)
cell = st.tuples(st.sampled_from(["B", "NK", "DC", "pDC", ""]), st.integers(0, 3), st.integers(0, 60))
stages = st.lists(cell, max_size=80)
seeds = st.integers(0, 100)
rules = st.sampled_from([ALONE, CAPPED])


def obs_of(cells, prefix="s"):
    """Return the cells ``(type, batch, content)`` as a table; equal contents occur."""
    types, batches, contents = zip(*cells, strict=True) if cells else ((), (), ())
    return make_obs(types, [f"b{one}" for one in batches], [f"d{one}" for one in contents], prefix)


def sets_of(split):
    """Return each cell's set, with train and reserve as one: what sums are made of."""
    return dict(zip(split["cell_id"], split["set"].replace(RESERVE, "train"), strict=True))


def removals(obs, data):
    """Return obs without some cells: at random, of a batch, of a type, or of a content."""
    kind = data.draw(st.sampled_from(["any", "batch", "cell_type", "cell_digest"]))
    if kind == "any":
        kept = data.draw(st.lists(st.booleans(), min_size=len(obs), max_size=len(obs)))
        return obs[np.array(kept, dtype=bool)]
    values = sorted(set(obs[kind]))
    return obs[obs[kind] != data.draw(st.sampled_from(values))] if values else obs


@few
@given(stages, seeds, rules, st.data())
def test_whatever_cells_are_removed_the_others_keep_their_sets(cells, seed, rule, data):
    obs = obs_of(cells)
    before = sets_of(split_stage(obs, rule, seed, False, {}))
    after = sets_of(split_stage(removals(obs, data), rule, seed, False, {}))
    assert after == {cell: before[cell] for cell in after}


@few
@given(stages, stages, seeds, rules, st.booleans())
def test_earlier_stages_have_no_say_and_one_content_has_one_set(cells, others, seed, rule, stratified):
    own = split_stage(obs_of(others, "a"), Split() if stratified else rule, seed, False, {})
    obs = obs_of(cells)
    split = split_stage(obs, rule, seed, False, {"first": own})
    assert split.equals(split_stage(obs, rule, seed, False, {}))
    if not stratified:
        both = pd.concat([own, split])
        sets = both["set"].replace(RESERVE, "train")
        assert (sets.groupby(both["cell_digest"]).nunique() <= 1).all()


@few
@given(stages, seeds, rules, st.randoms())
def test_the_order_of_rows_changes_nothing(cells, seed, rule, random):
    obs = obs_of(cells)
    order = list(range(len(obs)))
    random.shuffle(order)
    assert split_stage(obs.iloc[order], rule, seed, False, {}).equals(split_stage(obs, rule, seed, False, {}))


@few
@given(stages, seeds, st.integers(5, 1000))
def test_the_least_number_of_cells_is_of_no_account(cells, seed, least):
    obs = obs_of(cells)
    lenient = Split(rule="independent", min_cells=least)
    assert split_stage(obs, lenient, seed, False, {}).equals(split_stage(obs, ALONE, seed, False, {}))


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (0.9, 0.05, 0.05), (0.1, 0.3, 0.6)])
def test_shares_come_out_near_to_those_asked_for(shares):
    asked = Split(rule="independent", **dict(zip(SETS, shares, strict=True)))
    for seed in range(5):
        split = split_stage(make_obs(["B"] * 4000), asked, seed, False, {})
        for name, share in zip(SETS, shares, strict=True):
            low, high = binom.interval(1 - 1e-6, 4000, share)
            assert low <= (split["set"] == name).sum() <= high


def test_another_seed_draws_other_cells_and_sets_are_unrelated():
    obs = make_obs(["B"] * 2000)
    first, second = (split_stage(obs, ALONE, seed, False, {})["set"] == "train" for seed in (0, 1))
    low, high = binom.interval(1 - 1e-6, 2000, 0.36)
    assert low <= (first & second).sum() <= high


def test_a_draw_is_what_it_was():
    """Splits of lineages that began must come out again: by hash and seed alone, on any machine."""
    split = split_stage(make_obs(["B"] * 20), ALONE, 7, False, {})
    letters = {"train": "t", "validation": "v", "test": "e"}
    assert "".join(letters[name] for name in split["set"]) == "ttttvttttvttevvtettt"


@few
@given(stages, seeds)
def test_a_cap_divides_the_training_cells_and_nothing_else(cells, seed):
    obs = obs_of(cells)
    whole, capped = split_stage(obs, ALONE, seed, False, {}), split_stage(obs, CAPPED, seed, False, {})
    assert sets_of(capped) == sets_of(whole)
    assert RESERVE not in set(whole["set"])
    for name in set(whole["cell_type"][whole["set"] == "train"]):
        if whole["cell_digest"].is_unique:
            own = capped[capped["cell_type"] == name]
            assert (own["set"] == "train").sum() == min(10, own["set"].isin(SUMMED).sum())


def test_a_cap_lets_other_cells_decide_who_trains_the_network():
    obs = make_obs(["B"] * 60)
    split = split_stage(obs, CAPPED, 0, False, {})
    trained = split["cell_id"][split["set"] == "train"]
    again = split_stage(obs.drop(index=trained.iloc[0]), CAPPED, 0, False, {})
    moved = set(again["cell_id"][again["set"] == "train"]) - set(trained)
    assert len(moved) == 1
    assert set(split["set"][split["cell_id"].isin(moved)]) == {RESERVE}


def summed(split, levels):
    """Return the sums of the training cells of a split, those in reserve among them."""
    own = split[split["set"].isin(SUMMED)]
    values = [levels[name] for name in own["cell_digest"]]
    expression = np.array(values, dtype=np.float32).reshape(-1, N_GENES)
    return add_up(make_basis(N_GENES), [(expression, list(own["cell_type"]))])


@few
@given(stages, seeds, rules, st.data())
def test_sums_less_some_cells_are_those_of_a_file_that_never_had_them(cells, seed, rule, data):
    random = np.random.default_rng(0)
    levels = {f"d{i}": random.integers(0, 56, N_GENES) / 4 for i in range(61)}
    obs = obs_of(cells)
    rest = removals(obs, data)
    split = split_stage(obs, rule, seed, False, {})
    gone = split[~split["cell_id"].isin(rest.index)]
    less = summed(split, levels).minus(summed(gone, levels))
    never = summed(split_stage(rest, rule, seed, False, {}), levels)
    assert less.digest == never.digest
    assert summed(split[split["cell_id"].isin(rest.index)], levels).digest == never.digest


def drawn(**sets):
    """Return a split of types with these sets: t = training, v, e = test, r = reserve."""
    words = dict(zip("tver", (*SETS, RESERVE), strict=True))
    rows = [(name, words[letter]) for name, letters in sets.items() for letter in letters]
    return pd.DataFrame(
        {
            "cell_id": [f"s:{i}" for i in range(len(rows))],
            "cell_type": [name for name, _ in rows],
            "batch": "b",
            "cell_digest": [f"d{i}" for i in range(len(rows))],
            "set": [chosen for _, chosen in rows],
        }
    )


def test_types_that_a_set_lacks_are_told(tmp_path):
    split = drawn(B="ttve", DC="rve", Mono="tt", NK="ve", pDC="e")
    assert types_lacking(split) == {
        "train": {"NK": 2, "pDC": 1},
        "validation": {"Mono": 2, "pDC": 1},
        "test": {"Mono": 2},
    }
    assert only_train(split, ALONE) == {"Mono": 2}
    assert described_types(split) == {
        "B": None,
        "DC": None,
        "Mono": "2 cells: no validation, no test",
        "NK": "2 cells: no training",
        "pDC": "1 cell: no training, no validation",
    }
    write_split(tmp_path / "s.csv", "s", split, ALONE, {})
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["rule"] == "independent"
    assert summary["lacking"] == types_lacking(split)
    assert summary["only_train"] == {"Mono": 2}


def test_earlier_stages_are_not_in_what_is_written(tmp_path):
    first = split_stage(make_obs(["B"] * 20, prefix="a"), ALONE, 0, False, {})
    write_split(tmp_path / "first.csv", "first", first, ALONE, {})
    later = make_obs(["B"] * 20, digests=first["cell_digest"].tolist())
    split = split_stage(later, ALONE, 0, False, {"first": first})
    assert split["set"].tolist() == first["set"].tolist()
    write_split(tmp_path / "s.csv", "s", split, ALONE, {"first": tmp_path / "first.csv"})
    write_split(tmp_path / "t.csv", "s", split, ALONE, {})
    assert file_digest(tmp_path / "s.csv") == file_digest(tmp_path / "t.csv")
    assert (tmp_path / "s.json").read_bytes() == (tmp_path / "t.json").read_bytes()
    assert read_split(tmp_path / "s.csv").equals(split)


def test_no_cells_give_an_empty_split(tmp_path):
    split = split_stage(make_obs([]), ALONE, 0, False, {})
    write_split(tmp_path / "s.csv", "s", split, ALONE, {})
    assert read_split(tmp_path / "s.csv").empty
