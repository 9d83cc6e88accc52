import copy
import re
from functools import partial

import numpy as np
import pytest
import torch

from canal.config.sections import Cache
from canal.continual.cells import LabelledCells
from canal.continual.fit import CHECKPOINT, Hooks
from canal.continual.trainer import learn_stage, learning_rate
from canal.model.backbone import Performer
from canal.model.storage import weights_digest
from tests.support.tasks import SETTINGS, first_learned, first_task, grown_task, make_cells, second_task

LONGER = SETTINGS.model_copy(update={"max_epochs": 16, "cycle_epochs": 16, "patience": 16})
SHORT = SETTINGS.model_copy(update={"max_epochs": 3})


class InterruptionError(Exception):
    pass


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Hooks of trainings that share their features, as a project's do: weights are the same bits."""
    return partial(Hooks, cache_dir=tmp_path_factory.mktemp("features"))


def weights(learned):
    return weights_digest(learned.annotator.network.state_dict())


def accuracy(annotator, cells):
    return np.mean(np.array(annotator.predict(cells.expression).labels) == np.array(cells.cell_types))


def interrupt_after(epoch):
    def hook(record):
        if record["epoch"] == epoch:
            raise InterruptionError

    return hook


def test_two_types_are_learned(kept):
    learned = learn_stage(first_task(), LONGER, kept())
    unseen = make_cells({"B": 30, "T": 30}, "unseen", seed=77)
    assert accuracy(learned.annotator, unseen) > 0.9
    assert learned.annotator.labels == ("B", "T")
    assert learned.teacher is None


def test_a_second_stage_learns_the_new_and_keeps_the_old(kept):
    learned = learn_stage(second_task(), LONGER, kept())
    assert learned.annotator.labels == ("B", "T", "NK")
    assert learned.teacher is first_learned().annotator
    assert accuracy(learned.annotator, make_cells({"NK": 40}, "unseen", seed=78)) > 0.7
    assert accuracy(learned.annotator, make_cells({"B": 40}, "unseen", seed=79)) > 0.6


def test_history_says_what_happened(kept):
    told = []
    history = learn_stage(second_task(), SHORT, kept(on_epoch=told.append)).history
    assert history["epochs"] == told
    assert [record["epoch"] for record in told] == [1, 2, 3]
    assert [record["learning_rate"] for record in told] == [learning_rate(e, SHORT) for e in (1, 2, 3)]
    best = max(told, key=lambda r: (r["score"], -r["validation_cross_entropy"]))
    assert history["best_epoch"] == best["epoch"]
    assert {
        k: history[k] for k in ("stage", "stopped", "n_train", "n_replay", "n_validation", "n_probe")
    } == {
        "stage": "second",
        "stopped": "max_epochs",
        "n_train": 32,
        "n_replay": 20,
        "n_validation": 16,
        "n_probe": 16,
    }
    for record in told:
        both = [record["validation_accuracy"], record["probe_accuracy"]["first"]]
        assert record["score"] == pytest.approx(np.mean(both))
        weighted = 0.1 * 2 / 3 * record["distillation"]
        assert record["loss"] == pytest.approx(record["cross_entropy"] + weighted, rel=1e-5)


def test_where_not_all_validation_cells_are_used_the_score_is_of_those_that_are(kept):
    few = SHORT.model_copy(update={"max_validation_cells": 6})
    history = learn_stage(second_task(), few, kept()).history
    assert history["n_validation"] == 6
    for record in history["epochs"]:
        assert record["validation_accuracy"] * 6 == pytest.approx(round(record["validation_accuracy"] * 6))


def test_the_returned_annotator_is_the_best_epochs(kept):
    task = second_task()
    learned = learn_stage(task, LONGER, kept())
    best = learned.history["epochs"][learned.history["best_epoch"] - 1]
    assert accuracy(learned.annotator, task.validation) == pytest.approx(best["validation_accuracy"])
    assert accuracy(learned.annotator, task.probe) == pytest.approx(best["probe_accuracy"]["first"])


def test_training_ends_when_patience_runs_out(kept):
    impatient = SETTINGS.model_copy(update={"max_epochs": 100, "patience": 2, "learning_rate": 1e-6})
    history = learn_stage(first_task(), impatient, kept()).history
    assert history["stopped"] == "patience"
    assert len(history["epochs"]) < 20


def test_only_trained_parameters_change_and_the_parent_does_not(kept):
    parent = first_learned().annotator
    before = copy.deepcopy(parent.network.state_dict())
    learned = learn_stage(second_task(), SHORT, kept())
    assert weights_digest(parent.network.state_dict()) == weights_digest(before)
    after, trained = learned.annotator.network.state_dict(), learned.annotator.network.trained()
    frozen = [name for name in before if name not in trained]
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    changed = [name for name in trained if after[name].shape == before[name].shape]
    assert not any(torch.equal(after[name], before[name]) for name in changed)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(kept):
    first, again = (weights(learn_stage(first_task(), SHORT)) for _ in range(2))
    torch.manual_seed(99)
    assert first == again == weights(learn_stage(first_task(), SHORT, kept()))
    assert first != weights(learn_stage(first_task(seed=1), SHORT, kept()))


def test_the_number_of_threads_changes_no_bit():
    one = learn_stage(second_task(), SHORT)
    torch.set_num_threads(2)
    try:
        two = learn_stage(second_task(), SHORT)
    finally:
        torch.set_num_threads(1)
    assert weights(one) == weights(two)
    assert one.history == two.history


def test_with_and_without_cache_the_weights_are_the_same_bits(tmp_path):
    plain = learn_stage(second_task(), SHORT)
    filled = learn_stage(second_task(), SHORT, Hooks(cache_dir=tmp_path))
    kept = [np.load(path).shape for path in tmp_path.rglob("*.npy")]
    assert sorted(kept) == [(52, 64), (84, 25, 16)]
    found = learn_stage(second_task(), SHORT, Hooks(cache_dir=tmp_path))
    assert weights(plain) == weights(filled) == weights(found)
    assert plain.history == filled.history == found.history


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_too_small_a_cache_the_weights_are_the_same_bits_and_it_is_reported(tmp_path, dtype):
    told, small = [], Cache(max_gb=2e-5, dtype=dtype)
    hooks = Hooks(cache_dir=tmp_path, cache=small, on_notice=told.append)
    some = learn_stage(second_task(), SHORT, hooks)
    assert len(told) == 1
    assert re.match(r"the features of [1-9]\d? of 84 cells are kept", told[0])
    none = learn_stage(second_task(), SHORT, Hooks(cache=small, on_notice=told.append))
    assert len(told) == 1
    assert weights(some) == weights(none)


def test_rounded_features_give_other_weights_and_resume_no_exact_training(kept, tmp_path):
    rounded = Cache(dtype="bfloat16")
    with pytest.raises(InterruptionError):
        learn_stage(second_task(), SHORT, kept(interrupt_after(1), tmp_path))
    resumed = learn_stage(second_task(), SHORT, kept(checkpoint_dir=tmp_path, cache=rounded))
    assert weights(resumed) == weights(learn_stage(second_task(), SHORT, kept(cache=rounded)))
    assert weights(resumed) != weights(learn_stage(second_task(), SHORT, kept()))


def test_the_next_stage_finds_the_cells_of_bank_and_probe(tmp_path, monkeypatch):
    hooks, computed = Hooks(cache_dir=tmp_path), []
    encode = Performer.encode_prefix

    def counted(self, tokens):
        computed.append(len(tokens))
        return encode(self, tokens)

    learn_stage(first_task(), SHORT, hooks)
    monkeypatch.setattr(Performer, "encode_prefix", counted)
    task = second_task()
    learn_stage(task, SHORT, hooks)
    assert sum(computed) == len(task.train) + len(task.validation) == 48
    learn_stage(task, SHORT, hooks)
    assert sum(computed) == 48


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupted_training_ends_with_the_same_weights(kept, tmp_path, epoch):
    settings = SETTINGS.model_copy(update={"max_epochs": 5})
    with pytest.raises(InterruptionError):
        learn_stage(second_task(), settings, kept(interrupt_after(epoch), tmp_path))
    told = []
    resumed = learn_stage(second_task(), settings, kept(told.append, tmp_path))
    straight = learn_stage(second_task(), settings, kept())
    assert weights(resumed) == weights(straight)
    assert resumed.history == straight.history
    assert told == straight.history["epochs"]


def test_a_finished_training_is_not_repeated(kept, tmp_path, monkeypatch):
    first = learn_stage(first_task(), SHORT, kept(checkpoint_dir=tmp_path))
    monkeypatch.setattr("canal.continual.trainer._train_epoch", lambda *_: pytest.fail("trained again"))
    again = learn_stage(first_task(), SHORT, kept(checkpoint_dir=tmp_path))
    assert weights(first) == weights(again)


@pytest.mark.parametrize("change", ["damaged", "another task", "other settings"])
def test_a_checkpoint_that_does_not_count_starts_over(kept, tmp_path, change):
    task, settings = first_task(), SHORT
    with pytest.raises(InterruptionError):
        learn_stage(task, settings, kept(interrupt_after(2), tmp_path))
    if change == "damaged":
        path = tmp_path / CHECKPOINT
        path.write_bytes(path.read_bytes()[:-40])
    elif change == "another task":
        task = first_task(train=make_cells({"B": 20, "T": 20}, "first", seed=5))
    else:
        settings = SHORT.model_copy(update={"label_smoothing": 0.2})
    resumed = learn_stage(task, settings, kept(checkpoint_dir=tmp_path))
    assert weights(resumed) == weights(learn_stage(task, settings, kept()))


def test_a_stronger_teacher_keeps_representations_nearer(kept):
    task = second_task()
    old = task.parent.represent(task.replay.expression)

    def distance(strength):
        settings = SETTINGS.model_copy(update={"distillation": strength, "max_epochs": 6, "cycle_epochs": 6})
        new = learn_stage(task, settings, kept()).annotator.represent(task.replay.expression)
        return float(((new - old) ** 2).mean())

    assert distance(100.0) < 0.1 * distance(0.0)


def test_a_stage_without_replay_and_new_types(kept):
    task = second_task(
        new_labels=(),
        train=make_cells({"T": 16}, "second", seed=3),
        validation=make_cells({"T": 8}, "second", seed=4),
        replay=LabelledCells.empty(24),
    )
    assert learn_stage(task, SHORT, kept()).annotator.labels == ("B", "T")


def test_a_panel_that_grows_keeps_what_is_frozen_and_trains_the_new_columns(tmp_path):
    parent, told = first_learned().annotator, []
    learned = learn_stage(grown_task(), SHORT, Hooks(cache_dir=tmp_path, on_notice=told.append))
    assert told == ["the panel grows by 3 genes, such as NEW1, NEW2, NEW3"]
    assert weights(learned) == weights(learn_stage(grown_task(), SHORT))
    assert learned.teacher is parent
    child = learned.annotator
    assert (child.genes, child.labels) == (grown_task().genes, ("B", "T", "NK"))
    before, after = parent.network.state_dict(), child.network.state_dict()
    vectors = "backbone.pos_emb.weight"
    frozen = [name for name in before if name not in child.network.trained() and name != vectors]
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert torch.equal(after[vectors][[*range(24), -1]], before[vectors])
    assert after["head.to_manifold.weight"][:, 24:-1].any()


def test_the_teacher_of_a_grown_student_reads_its_own_panel(tmp_path):
    task = grown_task()
    learn_stage(task, SHORT, Hooks(cache_dir=tmp_path))
    (kept,) = (rows for path in tmp_path.rglob("*.npy") if (rows := np.load(path)).ndim == 2)
    trained = np.concatenate([task.train.expression, task.replay.expression])[:, :24]
    expected = first_learned().annotator.represent(trained)
    assert kept.shape == expected.shape
    apart = np.abs(kept[:, None] - expected[None]).max(axis=2)
    assert apart.min(axis=0).max() < 1e-4
    assert apart.min(axis=1).max() < 1e-4
