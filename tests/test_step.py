"""What a step keeps while it trains, and what it leaves."""

import errno
from types import SimpleNamespace

import pytest

from canal.app.choosing import watch_trials
from canal.app.learning import watch_training
from canal.app.pipeline import argument, run
from canal.config.layout import Layout
from canal.core.errors import ConfigError
from canal.runtime.together import PROCESSES
from canal.tuning.document import trial_documents
from canal.tuning.study import Study
from tests.support.cells import make_config
from tests.support.studies import FakeLearner, fails_on, make_plan


@pytest.fixture
def project(tmp_path):
    return SimpleNamespace(layout=Layout(tmp_path), config=make_config(cache={"max_gb": 2.5}))


def test_features_outlive_a_stage_and_its_checkpoints_do_not(project):
    with watch_training(project, SimpleNamespace(), "first", max_epochs=3) as hooks:
        for folder in (hooks.checkpoint_dir, hooks.cache_dir):
            folder.mkdir(parents=True)
            (folder / "file").write_text("x")
        assert (hooks.cache.max_bytes, hooks.cache.dtype) == (2_500_000_000, "float32")
    assert not hooks.checkpoint_dir.exists()
    assert (project.layout.features / "file").exists()


def test_a_step_has_as_many_processes_as_the_environment_says(project, monkeypatch):
    for asked, processes in (("", 1), ("3", 3)):
        monkeypatch.setenv(PROCESSES, asked)
        with watch_training(project, SimpleNamespace(), "first", max_epochs=3) as hooks:
            assert hooks.processes == processes


def test_a_step_that_fails_keeps_both_and_notices_are_shown(project, capsys):
    with (
        pytest.raises(RuntimeError, match="killed"),
        watch_training(project, SimpleNamespace(), "first", max_epochs=3) as hooks,
    ):
        hooks.checkpoint_dir.mkdir(parents=True)
        hooks.on_notice("the features of 2 of 9 cells are kept")
        raise RuntimeError("killed")
    assert hooks.checkpoint_dir.exists()
    assert "first: the features of 2 of 9 cells are kept" in capsys.readouterr().err


def test_each_trial_is_told_once_with_the_best_so_far_and_logged(tmp_path, capsys):
    study, logged = Study.open(make_plan(tmp_path)), []
    learner = FakeLearner(before=fails_on(lambda one: one["bank_size"] == 10))
    with watch_trials(study, lambda trials: logged.append(len(trials))) as watch_training:
        study.work(learner, watch_training)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("second: trial 0, λ 0.1, L 40: accuracy ")
    assert [f"; {n} of at most 6 done; best" in line for n, line in enumerate(lines, 1)] == [True] * 6
    named = [int(line.split("trial ")[1].split(",")[0]) for line in lines]
    assert named == [
        one["number"] for one in trial_documents(study).values()
    ]  # as `canal tune show` names them
    assert all("; best 0." in line and "(λ " in line for line in lines)
    assert any("failed: the loss became nan" in line for line in lines)
    assert logged == [0, 1, 2, 3, 4, 5, 6, 6]
    with watch_trials(study) as watch_training:
        study.work(learner, watch_training)
    assert "second: trial 5, " in capsys.readouterr().err


def test_a_stage_that_params_do_not_have_is_named_with_those_they_have(monkeypatch):
    monkeypatch.setattr("sys.argv", ["finetune.py", "--stage", "nope"])
    with pytest.raises(ConfigError, match="no stage 'nope' in params.yaml; there are first, second"):
        argument("stage", ["first", "second"])
    assert argument("stage", ["nope"]) == "nope"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "models/x"), "models/x: Permission denied"),
        (
            OSError(errno.EROFS, "Read-only file system", "a/.b.canal-0123abcd-1-0123abcd"),
            "a: Read-only",
        ),
    ],
)
def test_what_the_system_refuses_a_step_is_one_message(error, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def step():
        raise error

    with pytest.raises(SystemExit, match="1"):
        run(step)
    told = capsys.readouterr().err
    assert told.startswith("canal: cannot ")
    assert said in told


def test_an_error_of_the_system_that_is_nobodys_mistake_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def step():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "models/x")

    with pytest.raises(FileNotFoundError, match="models/x"):
        run(step)
