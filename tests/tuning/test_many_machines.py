"""A study in PostgreSQL, shared by processes that know of each other through the database alone."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from canal.core.errors import ConfigError
from canal.tuning.document import study_document, trial_documents
from canal.tuning.study import Study
from canal.tuning.workers import STORAGE
from tests.support.servers import new_database, postgres
from tests.support.studies import FakeLearner, make_plan, run

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Give a real PostgreSQL; without its programs this is an error, since what is promised needs it."""
    return postgres(tmp_path_factory.mktemp("servers"))


@pytest.fixture
def storage(server, monkeypatch):
    """Name a new, empty database by the environment, as a machine with a password does."""
    uri = new_database(server)
    monkeypatch.setenv(STORAGE, uri)
    return uri


def plan_of(folder: Path):
    return make_plan(folder, n_trials=8, heartbeat_seconds=1)


class Noting(FakeLearner):
    """Writes a line for each trial that it begins, and one for each that it ends, into a file of its own."""

    def __init__(self, path: Path, pause: float) -> None:
        super().__init__(pause=pause)
        self.path = path

    def learn(self, changes, report):
        self._note("began", changes)
        try:
            return super().learn(changes, report)
        finally:  # pruned trials, too; a kill runs no finally
            self._note("ended", changes)

    def _note(self, what: str, changes) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{what} {self.identity(changes)}\n")


def work(folder: Path, name: str, pause: float) -> None:
    """Work on the study on a machine of its own: no file is shared."""
    (folder / name).mkdir(parents=True)
    run(plan_of(folder / name), Noting(folder / f"{name}.txt", pause))


def lines(folder: Path, what: str) -> list[str]:
    """Return what all processes wrote."""
    written = [one for path in sorted(folder.glob("*.txt")) for one in path.read_text().splitlines()]
    return [one.removeprefix(f"{what} ") for one in written if one.startswith(what)]


def begin(folder: Path, name: str, pause: float) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(folder, name, pause))
    process.start()
    return process


def until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_processes_of_two_machines_run_no_trial_twice(storage, tmp_path):
    workers = [begin(tmp_path, name, 0.05) for name in ("ada", "ben")]
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    begun = lines(tmp_path, "began")
    assert len(begun) == len(set(begun)) == 8
    documents = [study_document(Study.open(plan_of(tmp_path / one)), {"n_effective": 40.0}) for one in "ab"]
    assert documents[0] == documents[1]
    assert documents[0]["because"] == [
        "several processes shared it, so the order of its trials was left to chance"
    ]


@pytest.mark.parametrize("published", [True, False])
def test_a_trial_whose_machine_died_is_tried_again_and_counted_once(storage, tmp_path, published):
    """Kill -9 in the first trial, which is the published point, or in a later one."""
    slow = begin(tmp_path, "slow", 0.4)
    until(lambda: len(lines(tmp_path, "began")) > (0 if published else 1))
    killed = lines(tmp_path, "began")[-1]
    os.kill(slow.pid, signal.SIGKILL)
    slow.join()
    assert killed not in lines(tmp_path, "ended")

    quick = begin(tmp_path, "quick", 0.01)
    quick.join(120)
    assert quick.exitcode == 0
    assert lines(tmp_path, "began").count(killed) == 2
    study = Study.open(plan_of(tmp_path / "seen"))
    trials = list(trial_documents(study).values())
    assert len(trials) == 8
    assert [one["published"] for one in trials] == [True] + [False] * 7
    identities = [one.user_attrs["training"] for one in study.kept()]
    assert identities.count(killed) == 1 == max(identities.count(one) for one in identities)
    assert all(one["state"] in ("complete", "pruned") for one in trials)


def test_a_process_that_stood_still_loses_its_trial_and_goes_on(storage, tmp_path):
    """SIGSTOP is what a machine that sleeps looks like: it wakes up to a trial that another has run."""
    sleeper = begin(tmp_path, "sleeper", 0.4)
    until(lambda: len(lines(tmp_path, "began")) > 1)
    taken = lines(tmp_path, "began")[-1]
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        work(tmp_path, "other", 0.01)
        assert lines(tmp_path, "ended").count(taken) == 1
        before = study_document(Study.open(plan_of(tmp_path / "x")), {"n_effective": 40.0})
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(60)
    assert sleeper.exitcode == 0
    assert study_document(Study.open(plan_of(tmp_path / "x")), {"n_effective": 40.0}) == before


def test_a_trial_that_ends_every_process_counts_as_failed_in_the_end(storage, tmp_path):
    """The published point needs too much memory: after four processes the study goes on without it."""
    for number in range(4):
        worker = begin(tmp_path, f"killed{number}", 5.0)
        until(lambda n=number: len(lines(tmp_path, "began")) > n)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    assert len(set(lines(tmp_path, "began"))) == 1
    work(tmp_path, "last", 0.01)
    trials = list(trial_documents(Study.open(plan_of(tmp_path / "seen"))).values())
    assert len(trials) == 8
    assert (trials[0]["state"], trials[0]["published"]) == ("failed", True)
    assert "every process that tried it ended" in trials[0]["reason"]


def test_a_wrong_password_is_one_message_without_it(storage, tmp_path, monkeypatch):
    monkeypatch.setenv(STORAGE, storage.replace("correct", "wrong"))
    with pytest.raises(ConfigError, match=f"{STORAGE}: Optuna cannot open it .*password") as told:
        Study.open(plan_of(tmp_path))
    assert "horse" not in str(told.value)
    assert len(str(told.value).splitlines()) == 1
