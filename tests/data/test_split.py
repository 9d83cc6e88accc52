import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.config.sections import Split
from canal.core.digests import file_digest
from canal.core.errors import DataError
from canal.data.split import (
    RESERVE,
    SETS,
    largest_remainder,
    only_train,
    read_split,
    split_stage,
    write_split,
)

SPLIT = Split()
SHARES = (0.6, 0.2, 0.2)


def make_obs(labels, batches=None, digests=None, prefix="s"):
    n = len(labels)
    return pd.DataFrame(
        {
            "cell_type": list(labels),
            "batch": list(batches or ["b1"] * n),
            "cell_digest": list(digests or [f"{prefix}-{i:04d}" for i in range(n)]),
        },
        index=[f"{prefix}:{i:04d}" for i in range(n)],
    )


def counted(split, cell_type):
    own = split[split["cell_type"] == cell_type]["set"]
    return [int((own == name).sum()) for name in SETS]


labels = st.lists(st.sampled_from(["B", "NK", "DC", "pDC"]), max_size=120)


@given(labels, st.integers(0, 100))
@settings(deadline=None, max_examples=25)
def test_a_partition_on_its_shares(labels, seed):
    split = split_stage(make_obs(labels), SPLIT, seed, False, {})
    assert list(split["cell_id"]) == [f"s:{i:04d}" for i in range(len(labels))]
    for cell_type in set(labels):
        n = labels.count(cell_type)
        wanted = [n, 0, 0] if n < SPLIT.min_cells else largest_remainder(n, SHARES).tolist()
        assert counted(split, cell_type) == wanted


@given(labels, st.integers(0, 100), st.randoms())
@settings(deadline=None, max_examples=25)
def test_the_order_of_rows_does_not_matter(labels, seed, random):
    obs = make_obs(labels, digests=[f"d{i // 2}" for i in range(len(labels))])
    order = list(range(len(labels)))
    random.shuffle(order)
    assert split_stage(obs.iloc[order], SPLIT, seed, False, {}).equals(
        split_stage(obs, SPLIT, seed, False, {})
    )


@given(labels, st.lists(st.integers(0, 40), min_size=120, max_size=120), st.booleans())
@settings(deadline=None, max_examples=25)
def test_no_content_stands_in_two_sets_of_any_stage(labels, contents, group_by_batch):
    n = len(labels)
    digests = [f"d{i}" for i in contents[:n]]
    batches = [f"b{i // 4}" for i in contents[:n]]  # a content has one batch, so that batches stay apart
    first = split_stage(make_obs(labels[: n // 2], None, digests[: n // 2], "a"), SPLIT, 0, False, {})
    later = make_obs(labels[n // 2 :], batches[n // 2 :], digests[n // 2 :], "b")
    group_by_batch = group_by_batch and later["batch"].nunique() >= 3
    second = split_stage(later, SPLIT, 0, group_by_batch, {"first": first})
    both = pd.concat([first, second])
    assert (both.groupby("cell_digest")["set"].nunique() <= 1).all()
    assert both["cell_id"].is_unique
    assert len(second) == len(later)


def test_another_seed_draws_other_cells():
    obs = make_obs(["B"] * 100)
    assert not split_stage(obs, SPLIT, 0, False, {}).equals(split_stage(obs, SPLIT, 1, False, {}))


def test_a_rare_type_only_trains_and_is_reported():
    split = split_stage(make_obs(["B"] * 50 + ["pDC"] * 9), SPLIT, 0, False, {})
    assert counted(split, "pDC") == [9, 0, 0]
    assert only_train(split, SPLIT) == {"pDC": 9}


def test_a_rare_type_trains_whatever_its_batch_does():
    labels = ["B"] * 60 + ["pDC"] * 6
    batches = [f"b{i % 6}" for i in range(66)]
    split = split_stage(make_obs(labels, batches), SPLIT, 0, True, {})
    assert counted(split, "pDC") == [6, 0, 0]


def test_cells_without_a_label_are_left_out():
    split = split_stage(make_obs(["B"] * 20 + [""] * 5), SPLIT, 0, False, {})
    assert len(split) == 20


def test_no_cells_give_an_empty_split(tmp_path):
    split = split_stage(make_obs([]), SPLIT, 0, False, {})
    write_split(tmp_path / "s.csv", "s", split, SPLIT, {})
    assert read_split(tmp_path / "s.csv").empty


def test_a_batch_stands_in_one_set():
    batches = [f"b{i % 10}" for i in range(200)]
    split = split_stage(make_obs(["B", "NK"] * 100, batches), SPLIT, 0, True, {})
    assert (split.groupby("batch")["set"].nunique() == 1).all()
    assert counted(split, "B") == [60, 20, 20]


def test_too_few_batches_to_group_by():
    with pytest.raises(DataError, match=r"at least 3 batches .* found 2 \(of the batches 'b0', 'b1'\)"):
        split_stage(make_obs(["B"] * 20, ["b0", "b1"] * 10), SPLIT, 0, True, {})


def test_batches_that_share_a_cell_count_as_one():
    digests = [f"d{i}" for i in range(29)] + ["d0"]
    with pytest.raises(DataError, match="found 2"):
        split_stage(make_obs(["B"] * 30, ["b0", "b1", "b2"] * 10, digests), SPLIT, 0, True, {})


def test_earlier_placements_count_towards_the_shares():
    earlier = split_stage(make_obs(["B"] * 100, prefix="a"), SPLIT, 0, False, {})
    seen = earlier[earlier["set"] == "test"]["cell_digest"].tolist()[:4]
    obs = make_obs(["B"] * 20, digests=seen + [f"new{i}" for i in range(16)])
    split = split_stage(obs, SPLIT, 0, False, {"first": earlier})
    assert counted(split, "B") == [12, 4, 4]
    assert set(split[split["cell_digest"].isin(seen)]["set"]) == {"test"}


def test_what_is_written_is_read_back_and_summed_up(tmp_path):
    first = split_stage(make_obs(["B"] * 20 + ["NA"] * 6, prefix="a"), SPLIT, 0, False, {})
    write_split(tmp_path / "first.csv", "first", first, SPLIT, {})
    digests = first["cell_digest"].tolist()[:3] + [f"n{i}" for i in range(17)]
    second = split_stage(make_obs(["B"] * 20, digests=digests), SPLIT, 0, False, {"first": first})
    write_split(tmp_path / "second.csv", "second", second, SPLIT, {"first": tmp_path / "first.csv"})
    assert read_split(tmp_path / "first.csv").equals(first)
    summary = json.loads((tmp_path / "second.json").read_text())
    assert summary == {
        "stage": "second",
        "sha256": file_digest(tmp_path / "second.csv"),
        "earlier": {"first": file_digest(tmp_path / "first.csv")},
        "counts": {"B": dict(zip(SETS, counted(second, "B"), strict=True))},
        "only_train": {},
        "moved": 3,
    }
    assert json.loads((tmp_path / "first.json").read_text())["only_train"] == {"NA": 6}


def test_a_damaged_split_is_refused(tmp_path):
    path = tmp_path / "s.csv"
    with pytest.raises(DataError, match="no such split"):
        read_split(path)
    path.write_text("cell_id,set\n")
    with pytest.raises(DataError, match="missing 'cell_type', 'batch', 'cell_digest'"):
        read_split(path)
    path.write_text("cell_id,cell_type,batch,cell_digest,set\na,B,b,d,exam\n")
    with pytest.raises(DataError, match="found 'exam'"):
        read_split(path)


def test_sets_are_drawn_at_random():
    obs = make_obs(["B"] * 1000)
    split = split_stage(obs, SPLIT, 0, False, {})
    position = np.flatnonzero(split["set"] == "test")
    assert abs(position.mean() - 500) < 80  # five standard errors of a mean of 200 of 1,000


CAPPED = Split(max_cells_per_type=20)


@given(labels, st.integers(0, 100), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_a_cap_takes_from_training_cells_alone(labels, seed, n_batches):
    obs = make_obs(labels, [f"b{i % n_batches}" for i in range(len(labels))])
    whole, capped = split_stage(obs, SPLIT, seed, False, {}), split_stage(obs, CAPPED, seed, False, {})
    train, reserve = capped["set"] == "train", capped["set"] == RESERVE
    assert capped[~train & ~reserve].equals(whole[whole["set"] != "train"])
    assert set(capped[train | reserve]["cell_id"]) == set(whole[whole["set"] == "train"]["cell_id"])
    before = whole[whole["set"] == "train"]["cell_type"].value_counts()
    assert capped[train]["cell_type"].value_counts().to_dict() == before.clip(upper=20).to_dict()


def test_a_cap_leaves_every_batch_its_share():
    batches = ["large"] * 160 + ["small"] * 40
    split = split_stage(make_obs(["B"] * 200, batches), CAPPED, 0, False, {})
    own = split[split["set"].isin(["train", RESERVE])]
    drawn = own[own["set"] == "train"]["batch"].value_counts()
    whole = own["batch"].value_counts()
    assert drawn.sum() == 20
    assert drawn["large"] == pytest.approx(20 * whole["large"] / len(own), abs=1)


def test_a_cap_that_nothing_reaches_changes_nothing():
    obs = make_obs(["B"] * 30 + ["NK"] * 12)
    assert split_stage(obs, CAPPED, 0, False, {}).equals(split_stage(obs, SPLIT, 0, False, {}))


def test_cells_of_one_content_train_together_or_not_at_all():
    obs = make_obs(["B"] * 200, digests=[f"d{i // 5}" for i in range(200)])
    split = split_stage(obs, CAPPED, 0, False, {})
    assert (split.groupby("cell_digest")["set"].nunique() == 1).all()
    assert counted(split, "B")[0] == 20


def test_reserve_of_an_earlier_stage_is_never_validated_or_tested_on():
    earlier = split_stage(make_obs(["B"] * 200, prefix="a"), CAPPED, 0, False, {})
    reserve = earlier[earlier["set"] == RESERVE]["cell_digest"].tolist()
    later = make_obs(["B"] * 100, digests=reserve[:50] + [f"new{i}" for i in range(50)])
    split = split_stage(later, CAPPED, 0, False, {"first": earlier})
    assert set(split[split["cell_digest"].isin(reserve)]["set"]) <= {"train", RESERVE}


def test_a_cap_is_recorded_and_read_back(tmp_path):
    split = split_stage(make_obs(["B"] * 100 + ["NK"] * 20), CAPPED, 0, False, {})
    write_split(tmp_path / "s.csv", "s", split, CAPPED, {})
    assert read_split(tmp_path / "s.csv").equals(split)
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["max_cells_per_type"] == 20
    assert summary["counts"]["B"] == {"train": 20, "validation": 20, "test": 20, "reserve": 40}
    assert summary["counts"]["NK"]["reserve"] == 0
