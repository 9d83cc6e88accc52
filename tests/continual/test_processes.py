"""Several processes learn what one does, to the bit; one that is lost costs an epoch at most."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from canal.app.running import check_before_run
from canal.continual import fit, processes
from canal.continual.fit import CHECKPOINT, MOST_RESTARTS, Fit, Hooks, groups_of, shared
from canal.continual.pretraining import pretrain
from canal.continual.processes import LostProcessError, Share, backend
from canal.continual.trainer import learn_stage
from canal.core.errors import ConfigError
from canal.model.storage import BackboneConfig, weights_digest
from canal.runtime.startup import own_code
from canal.runtime.together import PROCESSES, TORCHRUN, follows, processes_asked
from tests.continual.test_pretraining import SETTINGS as PRETRAINING
from tests.continual.test_pretraining import corpus
from tests.support.models import make_backbone
from tests.support.tasks import SETTINGS, second_task
from tests.support.together import exchange

WIDE = BackboneConfig(dim=16, depth=3, heads=2, head_dim=8, n_features=2000)
"""So many features that 5 cells go through at a time: a batch of 16 has groups of 5, 5, 5 and 1."""

SEVEN = SETTINGS.model_copy(update={"max_epochs": 3, "batch_size": 7})
"""Shares of 4 and 3 cells; of 52 cells, the last batch has 3, in shares of 2 and 1."""


TWO_EPOCHS = PRETRAINING.model_copy(update={"max_epochs": 2})


def weights(network):
    return weights_digest(network.state_dict())


def others(process=None):
    """Return the processes that one, by default this, has started to learn with it."""
    process = process or psutil.Process()
    return [one for one in process.children() if "--multiprocessing-fork" in one.cmdline()]


def test_two_processes_pretrain_as_one_does_to_the_bit():
    (one, history), told = pretrain(corpus(), WIDE, TWO_EPOCHS, 0), []
    two, same = pretrain(corpus(), WIDE, TWO_EPOCHS, 0, Hooks(told.append, processes=2))
    assert weights(two.network) == weights(one.network)
    assert same == history
    assert told == history["epochs"]


def test_two_processes_learn_a_stage_with_bank_and_teacher_as_one_does_to_the_bit(tmp_path):
    one = learn_stage(second_task(), SEVEN)
    folders = {name: tmp_path / name for name in ("checkpoint_dir", "cache_dir")}
    told, threads = [], torch.get_num_threads()
    two = learn_stage(second_task(), SEVEN, Hooks(told.append, **folders, processes=2))
    assert weights(two.annotator.network) == weights(one.annotator.network)
    assert two.history == one.history
    assert told == one.history["epochs"]
    assert [path.name for path in folders["checkpoint_dir"].iterdir()] == [CHECKPOINT]
    assert torch.get_num_threads() == threads
    assert not others()


def test_a_process_that_is_killed_within_an_epoch_costs_that_epoch_alone(tmp_path, monkeypatch):
    steps, told, notices, step = [], [], [], Fit.step

    def step_and_kill(self, value, rate):
        """Kill the other process after the third batch of the second epoch."""
        step(self, value, rate)
        steps.append(value)
        if len(steps) == 8 + 3:
            (other,) = others()
            other.kill()

    one = learn_stage(second_task(), SEVEN)
    monkeypatch.setattr(Fit, "step", step_and_kill)
    hooks = Hooks(told.append, tmp_path, on_notice=notices.append, processes=2)
    two = learn_stage(second_task(), SEVEN, hooks)
    assert weights(two.annotator.network) == weights(one.annotator.network)
    assert told == two.history["epochs"] == one.history["epochs"]
    assert notices == ["process 2 of the 2 that learn together ended by signal 9: going on from epoch 1"]
    assert len(steps) == 4 * 8 - (8 - 3)


def test_parts_are_added_in_order_and_a_process_without_any_passes_the_sum_on():
    found = {}

    def interrupt(record):
        found.update(record)
        assert len(others()) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shared(exchange, (3,), Hooks(interrupt, processes=3), batch_size=3)
    assert not others()
    parts = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    assert torch.equal(found["five"], total)
    assert torch.equal(found["one"], parts[0])
    assert found["merged"].tolist() == [1, 2, 3]
    assert "2 of 3 processes would learn from other cells" in found["refusal"]
    assert found["epoch"] == 1


PERFORMER = make_backbone().network


@settings(max_examples=200)
@given(
    files=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(sum),
    size=st.integers(1, 9),
    batch_size=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_whatever_files_cells_come_from_each_is_in_one_share_of_an_epoch(files, size, batch_size, seed):
    """An epoch is a permutation of the cells of all files; a process reads the rows of its share alone."""
    order = torch.randperm(sum(files), generator=fit.generator(seed, "order", 1))
    read = [
        [
            row
            for batch in torch.split(order, batch_size)
            for group in Share(rank, size).part(groups_of(batch, PERFORMER, size))
            for row in group.tolist()
        ]
        for rank in range(size)
    ]
    assert sorted(row for rows in read for row in rows) == list(range(sum(files)))
    for batch in torch.split(order, batch_size):  # in the order of the batch, process after process
        groups = groups_of(batch, PERFORMER, size)
        shares = [list(Share(rank, size).part(groups)) for rank in range(size)]
        assert torch.equal(torch.cat([group for share in shares for group in share]), batch)
        assert shares[0]


def test_a_training_that_loses_its_processes_again_and_again_ends(monkeypatch):
    @contextmanager
    def lost(*_):
        raise LostProcessError("process 2 of the 2 that learn together ended by signal 9")
        yield

    monkeypatch.setattr(fit, "assisted", lost)
    notices = []
    with pytest.raises(LostProcessError, match=r"ended by signal 9; so it was 4 times.*by fewer processes"):
        shared(exchange, (3,), Hooks(on_notice=notices.append, processes=2), batch_size=3)
    assert len(notices) == MOST_RESTARTS


def test_what_a_lost_process_said_last_is_told(tmp_path):
    def started(rank, what):
        log = str(tmp_path / f"{rank}.log")
        code = f"import sys\nsys.stderr = open({log!r}, 'w')\nsys.exit({what!r})"
        process = processes._SPAWN.Process(target=exec, args=(code,))
        process.start()
        return process

    both = [started(1, f"{processes._LOST} (closed)"), started(2, "no space left")]
    for one in both:
        one.join()
    found = processes._what_ended(tmp_path, both)
    assert found == "process 3 of the 3 that learn together ended with exit code 1: no space left"


def test_more_processes_than_cells_of_a_batch_are_refused():
    with pytest.raises(ConfigError, match=r"8 processes .* but a batch has 7 cells .* 7 at most"):
        learn_stage(second_task(), SEVEN, Hooks(processes=8))


def test_processes_without_work_are_told():
    assert Share(0, 2).idle(2) == ""
    assert Share(0, 4).idle(2).startswith("of 4 processes, 2 have work")


def test_a_torch_that_cannot_connect_processes_is_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_gloo_available", lambda: False)
    with pytest.raises(ConfigError, match="on cpu need gloo, which this torch"):
        backend("cpu", 2)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"2 processes on GPUs, .* torch sees 1"):
        backend("cuda", 2)


@pytest.mark.parametrize("wrong", ["abc", "0", "-1", "2.5", "²"])
def test_a_number_of_processes_that_is_none_is_refused(wrong, monkeypatch):
    monkeypatch.setenv(PROCESSES, wrong)
    with pytest.raises(ConfigError, match=f"{PROCESSES} is a number of processes from 1 on, found '{wrong}'"):
        check_before_run()  # of `canal run`, before DVC deletes what is to be made anew


def test_torchruns_variables_say_which_process_this_is(monkeypatch):
    assert (processes_asked(), follows()) == (1, False)
    monkeypatch.setenv(PROCESSES, "3")
    assert processes_asked() == 3
    for name in TORCHRUN:  # of another program, which did not come from torchrun
        monkeypatch.setenv(name, "2")
    assert (processes_asked(), follows()) == (3, False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert follows()
    with pytest.raises(ConfigError, match="torchrun has started 2 processes"):
        processes_asked()
    monkeypatch.delenv(PROCESSES)
    assert processes_asked() is None


LEARN = """
import os, sys, time
from canal.continual.fit import Hooks
from canal.continual.trainer import learn_stage
from canal.model.storage import weights_digest
from pathlib import Path
from tests.continual.test_processes import SEVEN, second_task

folder, processes, pause = Path(sys.argv[1]), int(sys.argv[2]) or None, float(sys.argv[3])
rank = os.environ.get("RANK", "0")

def told(record):
    (folder / f"epoch-{record['epoch']}").touch()
    mark = folder / "killed"
    if sys.argv[4:] == ["once"] and record["epoch"] == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    time.sleep(pause)

if __name__ == "__main__":
    learned = learn_stage(second_task(), SEVEN, Hooks(told, folder / "checkpoint", processes=processes))
    (folder / f"{rank}.txt").write_text(weights_digest(learned.annotator.network.state_dict()))
"""


def environment():
    """Return the environment of a script that has one thread, as tests have, and finds their support."""
    env = {**own_code(), "OMP_NUM_THREADS": "1"}
    return env | {"PYTHONPATH": f"{env['PYTHONPATH']}{os.pathsep}{Path.cwd()}"}


@pytest.mark.chaos
def test_torchrun_starts_the_processes_and_starts_them_anew_where_one_is_killed(tmp_path):
    (tmp_path / "learn.py").write_text(LEARN)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command = [sys.executable, *torchrun, str(tmp_path / "learn.py"), str(tmp_path), "0", "0", "once"]
    env = environment()
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=300)
    one = weights(learn_stage(second_task(), SEVEN).annotator.network)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == [one, one]
    assert (tmp_path / "killed").exists()


@pytest.mark.chaos
def test_where_the_step_itself_is_killed_the_others_end_and_the_next_one_goes_on(tmp_path):
    (tmp_path / "learn.py").write_text(LEARN)
    env = environment()
    command = [sys.executable, str(tmp_path / "learn.py"), str(tmp_path), "2"]
    process = psutil.Popen([*command, "600"], env=env)
    while not (tmp_path / "epoch-1").exists():
        assert process.is_running()
        time.sleep(0.1)
    (other,) = others(process)
    process.kill()
    process.wait()
    psutil.wait_procs([other], timeout=20)
    assert not other.is_running()
    subprocess.run([*command, "0"], env=env, check=True, timeout=300)
    assert (tmp_path / "0.txt").read_text() == weights(learn_stage(second_task(), SEVEN).annotator.network)
