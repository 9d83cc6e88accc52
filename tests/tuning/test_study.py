"""A study goes on where it was, shared or killed, and ends as if nothing had happened."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from canal.core.errors import ConfigError, TrainingError
from canal.tuning.document import study_document, trial_documents
from canal.tuning.study import Study
from tests.support.studies import QUIET, FakeLearner, fails_on, make_plan, run


def document(study):
    return study_document(study, {"n_effective": 40.0})


def settings(study):
    return [tuple(one["settings"].values()) for one in trial_documents(study).values()]


class KilledError(BaseException):
    """Ends a study the way a kill does: nothing is told."""


def killed_in(trial, epoch):
    """Return a hook that ends everything in an epoch of the n-th trial begun."""
    begun = []

    def before(changes, number):
        if number == 1:
            begun.append(changes)
        if len(begun) == trial and number == epoch:
            raise KilledError

    return before


def test_the_first_trial_is_the_published_point_and_n_trials_are_run(tmp_path):
    learner = FakeLearner()
    found = document(run(make_plan(tmp_path), learner))
    first = found["trials"][0]
    assert first["published"]
    assert first["settings"] == {"distillation": 0.1, "bank_size": 40}
    assert first["state"] == "complete"
    assert [one["number"] for one in found["trials"]] == list(range(6))
    assert sum(found["states"].values()) == 6 == len(learner.learned)
    assert found["reproducible"]
    assert found["choice"] == found["trials"][found["chosen"]]["settings"]


def test_the_same_study_gives_the_same_bytes_and_another_seed_other_trials(tmp_path):
    one = run(make_plan(tmp_path / "one"))
    two = run(make_plan(tmp_path / "two"))
    other = run(make_plan(tmp_path / "other", digest="2" * 64))
    assert json.dumps(document(one)) == json.dumps(document(two))
    assert settings(one)[1:] != settings(other)[1:]
    assert settings(one)[0] == settings(other)[0]


def test_a_finished_study_runs_no_trial_again(tmp_path):
    before = document(run(make_plan(tmp_path)))
    learner = FakeLearner()
    assert document(run(make_plan(tmp_path), learner)) == before
    assert learner.learned == []


def test_other_params_or_data_are_another_study(tmp_path):
    run(make_plan(tmp_path))
    learner = FakeLearner()
    run(make_plan(tmp_path, digest="3" * 64), learner)
    assert len(learner.learned) == 6


@pytest.mark.parametrize(("trial", "epoch"), [(1, 1), (1, 3), (3, 2), (6, 1)])
def test_a_study_that_was_killed_ends_as_if_it_had_not_been(tmp_path, trial, epoch):
    wanted = document(run(make_plan(tmp_path / "whole")))
    with pytest.raises(KilledError):
        run(make_plan(tmp_path / "killed"), FakeLearner(before=killed_in(trial, epoch)))
    learner = FakeLearner()
    study = run(make_plan(tmp_path / "killed"), learner)
    assert document(study) == wanted
    assert len(learner.learned) == 6 - (trial - 1)
    assert document(study)["reproducible"]


def test_a_study_that_is_killed_all_the_time_ends_as_if_it_had_not_been(tmp_path):
    wanted = document(run(make_plan(tmp_path / "whole")))
    for _ in range(6):
        with pytest.raises(KilledError):
            run(make_plan(tmp_path / "killed"), FakeLearner(before=killed_in(2, 1)))
        with pytest.raises(KilledError):
            run(make_plan(tmp_path / "killed"), FakeLearner(before=killed_in(1, 2)))
        if len(Study.open(make_plan(tmp_path / "killed")).kept()) == 5:
            break
    assert document(run(make_plan(tmp_path / "killed"))) == wanted


@pytest.mark.parametrize("asked", [1, 3, 5, 8])
def test_a_study_that_is_killed_while_it_draws_ends_as_if_it_had_not_been(tmp_path, asked):
    """Settings that differ in lambda alone count as the same here, so that some draws are given up."""

    class Coarse(FakeLearner):
        def identity(self, changes):
            return str(changes["bank_size"])

    class Killed(Coarse):
        count = 0

        def identity(self, changes):
            self.count += 1
            if self.count == asked:
                raise KilledError
            return super().identity(changes)

    sizes = {"n_trials": 4, "bank_sizes": (10, 20, 30)}
    wanted = document(run(make_plan(tmp_path / "whole", **sizes), Coarse()))
    with pytest.raises(KilledError):
        run(make_plan(tmp_path / "killed", **sizes), Killed())
    assert document(run(make_plan(tmp_path / "killed", **sizes), Coarse())) == wanted
    assert sorted(one["settings"]["bank_size"] for one in wanted["trials"]) == [10, 20, 30, 40]


def work(folder, answer, begin, changes):
    learner = FakeLearner(pause=0.02)
    begin.wait()
    run(make_plan(folder, **changes), learner, shared=True)
    answer.put(learner.learned)


def together(folder, n, **changes):
    """Let ``n`` processes share a study; return what each one learned."""
    context = multiprocessing.get_context("spawn")
    answer, begin = context.Queue(), context.Barrier(n)
    processes = [context.Process(target=work, args=(folder, answer, begin, changes)) for _ in range(n)]
    for process in processes:
        process.start()
    learned = [answer.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return learned


def test_processes_share_a_study_and_run_no_trial_twice(tmp_path):
    learned = together(tmp_path, 2, n_trials=9)
    found = document(Study.open(make_plan(tmp_path, n_trials=9)))
    together_learned = [repr(sorted(one.items())) for part in learned for one in part]
    assert len(together_learned) == len(set(together_learned)) == 9 == len(found["trials"])
    assert all(learned)
    assert found["trials"][0]["published"]
    assert not found["reproducible"]
    assert "several processes" in found["because"][0]


def test_kill_9_loses_no_trial_and_no_choice(tmp_path):
    wanted = document(run(make_plan(tmp_path / "whole")))
    Study.open(make_plan(tmp_path / "killed"))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=work_alone, args=(tmp_path / "killed",))
    process.start()
    deadline = time.monotonic() + 60
    while len(Study.open(make_plan(tmp_path / "killed")).kept()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    learner = FakeLearner()
    assert document(run(make_plan(tmp_path / "killed"), learner)) == wanted
    assert 0 < len(learner.learned) <= 4


def work_alone(folder):
    run(make_plan(folder), FakeLearner(pause=0.1))


def test_the_same_with_any_storage(tmp_path):
    wanted = document(run(make_plan(tmp_path / "journal")))
    plan = make_plan(tmp_path / "sqlite", storage="sqlite:///tuning.db")
    with pytest.raises(KilledError):
        run(plan, FakeLearner(before=killed_in(3, 2)))
    assert {**document(run(plan)), "tuning": None} == {**wanted, "tuning": None}
    assert (tmp_path / "sqlite" / "tuning.db").is_file()


def test_a_storage_that_cannot_be_opened_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match=r"tuning\.storage: Optuna cannot open it"):
        Study.open(make_plan(tmp_path, storage="nonsense://x"))


@pytest.mark.parametrize("storage", ["postgresql://ada:hunter2@127.0.0.1:1/db", "ada:hunter2@host/db"])
def test_a_storages_password_is_in_no_message(tmp_path, storage):
    with pytest.raises(ConfigError, match=r"tuning\.storage") as error:
        Study.open(make_plan(tmp_path, storage=storage))
    assert "hunter2" not in str(error.value)


def test_a_journal_cut_off_in_a_line_goes_on_and_a_damaged_one_is_named(tmp_path):
    wanted = document(run(make_plan(tmp_path / "whole")))
    plan = make_plan(tmp_path / "cut")
    with pytest.raises(KilledError):
        run(plan, FakeLearner(before=killed_in(4, 2)))
    with plan.journal.open("ab") as stream:
        stream.write(b'{"op_code": 8, "wor')
    assert document(run(plan)) == wanted
    plan.journal.write_bytes(b"not json\n" + plan.journal.read_bytes())
    with pytest.raises(TrainingError, match="damaged"):
        Study.open(plan)


def test_a_trial_that_diverges_is_failed_with_its_reason_and_the_study_goes_on(tmp_path):
    study = run(make_plan(tmp_path), FakeLearner(before=fails_on(lambda one: one["bank_size"] < 40)))
    found = document(study)
    assert len(found["trials"]) == 6
    assert found["states"]["failed"] > 0
    failed = [one for one in found["trials"] if one["state"] == "failed"]
    assert all("the loss became nan in epoch 2" in one["reason"] for one in failed)
    assert all(one["settings"]["bank_size"] < 40 for one in failed)
    assert found["choice"]["bank_size"] == 40


def test_where_all_trials_fail_the_reasons_are_listed(tmp_path):
    study = run(make_plan(tmp_path, n_trials=3), FakeLearner(before=fails_on(lambda one: True)))
    with pytest.raises(TrainingError, match=r"no trial of stage 'second' ran to its end \(3 tried\)") as told:
        document(study)
    assert str(told.value).count("the loss became nan") == 3
    assert "trial 0 (bank_size 40, distillation 0.1)" in str(told.value)


def test_poor_trials_are_ended_early_but_never_the_published_one(tmp_path):
    found = document(run(make_plan(tmp_path, n_trials=12)))
    pruned = [one for one in found["trials"] if one["state"] == "pruned"]
    assert pruned
    assert all(len(one["curve"]) == 2 for one in pruned), "no trial is ended in its first epoch"
    assert all(one["value"] is None and one["retention"] > 0 for one in pruned)
    assert found["trials"][0]["state"] == "complete"
    assert found["chosen"] not in {one["number"] for one in pruned}


def test_no_trial_learns_what_another_one_learned(tmp_path):
    class Coarse(FakeLearner):
        def identity(self, changes):
            return str(changes["bank_size"])

    learner = Coarse()
    study = run(make_plan(tmp_path, n_trials=3), learner)
    assert sorted(one["bank_size"] for one in learner.learned) == [10, 20, 40]
    assert len(trial_documents(study)) == 3


def test_no_trial_begins_when_the_time_is_over_but_one_always_ends(tmp_path):
    study = run(make_plan(tmp_path), deadline=time.monotonic())
    found = document(study)
    assert len(found["trials"]) == 1
    assert found["because"] == ["max_minutes ended it after 1 of 6 trials"]
    assert document(run(make_plan(tmp_path)))["reproducible"]


def test_each_end_of_a_trial_is_reported(tmp_path):
    from canal.tuning.study import Watch

    study, seen, epochs = Study.open(make_plan(tmp_path)), [], []
    watch = Watch(lambda changes, epoch: epochs.append(epoch), lambda: seen.append(len(study.kept())))
    study.work(FakeLearner(), watch)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert set(epochs) == {1, 2, 3}
    study.work(FakeLearner(), QUIET)
    assert len(seen) == 6
