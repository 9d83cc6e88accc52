"""A process is at work until it ends, however it ends."""

import multiprocessing
import os
import signal

from canal.tuning.workers import at_work, is_alive


def hold(folder, answer):
    with at_work(folder) as name:
        answer.put(name)
        signal.pause()


def test_one_that_works_is_alive_and_one_that_ended_is_not(tmp_path):
    with at_work(tmp_path) as me:
        assert is_alive(tmp_path, me)
    assert not is_alive(tmp_path, me)
    assert not is_alive(tmp_path, "never")
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_killed_is_not_alive(tmp_path):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=hold, args=(tmp_path, answer))
    process.start()
    name = answer.get(timeout=60)
    assert is_alive(tmp_path, name)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not is_alive(tmp_path, name)
