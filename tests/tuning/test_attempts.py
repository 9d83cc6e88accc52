"""An attempt is a short training on the stage's own cells, with another bank and other settings."""

from dataclasses import replace

import numpy as np
import pytest

from canal.continual.bank import Bank, cut
from canal.continual.fit import Hooks
from canal.continual.stage import Task
from canal.continual.trainer import learn_stage
from canal.core.errors import TrainingError
from canal.model.backbone import Performer
from canal.tuning.attempts import Attempts, accuracy_by_stage, score
from tests.support.studies import make_tuning
from tests.support.tasks import SETTINGS, first_task, grown_task, second_task

PUBLISHED = {"distillation": 0.1, "bank_size": 40}


class EndedError(Exception):
    pass


def silent(epoch, found, value):
    pass


def make_attempts(hooks=None, **changes):
    bank = Bank(first_task().train, np.arange(1, 41), ("first",))
    attempts = Attempts(second_task(), bank, SETTINGS, make_tuning(), 40, hooks or Hooks())
    return replace(attempts, **changes)


def test_an_attempt_is_the_beginning_of_the_training_with_its_settings():
    attempts, told = make_attempts(), []
    changes = {"distillation": 1.0, "bank_size": 20}
    found = attempts.learn(changes, lambda *args: told.append(args))
    assert [epoch for epoch, _, _ in told] == [1, 2, 3]
    settings = SETTINGS.model_copy(update=changes)
    task = second_task(replay=cut(attempts.bank, 20, len(attempts.task.old_labels)).cells)
    history = learn_stage(task, settings).history
    teacher = accuracy_by_stage(task.teacher, task.probe)
    wanted = [score(epoch, teacher) for epoch in history["epochs"][:3]]
    assert [one for _, one, _ in told] == wanted
    assert found.score == wanted[found.epoch - 1]
    assert found.n_replay == 20
    assert found.value == pytest.approx(found.score.harmonic_mean - 0.01 * 20 / 40)


def test_attempts_share_the_caches_and_leave_no_checkpoint(tmp_path, monkeypatch):
    computed, encode = [], Performer.encode_prefix

    def counted(self, tokens):
        computed.append(len(tokens))
        return encode(self, tokens)

    hooks = Hooks(cache_dir=tmp_path / "features", checkpoint_dir=tmp_path / "checkpoints")
    attempts = make_attempts(hooks)
    before = attempts.learn({"distillation": 0.1, "bank_size": 40}, silent)
    monkeypatch.setattr(Performer, "encode_prefix", counted)
    assert attempts.teacher
    asked = sum(computed)
    again = attempts.learn({"distillation": 0.1, "bank_size": 40}, silent)
    attempts.learn({"distillation": 5.0, "bank_size": 10}, silent)
    assert sum(computed) == asked
    assert again == before
    assert not (tmp_path / "checkpoints").exists()


def test_what_the_watcher_raises_ends_the_attempt():
    def report(epoch, found, value):
        if epoch == 2:
            raise EndedError

    with pytest.raises(EndedError):
        make_attempts().learn(PUBLISHED, report)


def test_a_loss_that_is_no_number_is_a_training_error_with_its_epoch():
    own = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match="the loss became"):
        make_attempts(own=own).learn(PUBLISHED, silent)


def test_two_attempts_are_the_same_where_they_replay_the_same_cells():
    attempts = make_attempts()
    same = attempts.identity({"distillation": 0.0, "bank_size": 40})
    assert attempts.identity({"distillation": 0.0, "bank_size": 100}) == same
    assert attempts.identity({"distillation": 0.0, "bank_size": 20}) != same
    assert attempts.identity({"distillation": 0.1, "bank_size": 40}) != same
    assert attempts.identity({"distillation": 0.0, "bank_size": 40, "label_smoothing": 0.2}) != same


def test_no_more_epochs_than_a_trial_has():
    told = []
    make_attempts().learn({**PUBLISHED, "max_epochs": 2}, lambda *args: told.append(args))
    assert len(told) == 2


def test_a_task_has_no_place_for_test_cells():
    """What an attempt is given: training, replayed, validation and probe cells, and no others."""
    cells = {name for name, kind in Task.__annotations__.items() if kind == "LabelledCells"}
    assert cells == {"train", "validation", "replay", "probe"}
    assert set(Attempts.__annotations__) == {"task", "bank", "own", "tuning", "capacity", "hooks"}


def test_a_stage_whose_panel_grows_is_attempted_beside_a_teacher_that_reads_less():
    bank = Bank(first_task().train, np.arange(1, 41), ("first",))
    grown = make_attempts(task=grown_task(), bank=bank.widened(27))
    assert grown.teacher == make_attempts().teacher
    assert grown.learn(PUBLISHED, silent).value > 0
