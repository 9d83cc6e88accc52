import threading

import pytest
import torch

from canal.model.compute import in_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order(two_threads):
    assert in_threads(lambda i: i * i, range(50)) == [i * i for i in range(50)]


def test_threads_work_side_by_side_each_with_one_thread(two_threads):
    meeting = threading.Barrier(2, timeout=20)

    def work(_):
        meeting.wait()
        return threading.current_thread().name, torch.get_num_threads()

    found = in_threads(work, range(2))
    assert len({name for name, _ in found}) == 2
    assert {threads for _, threads in found} == {1}
    assert torch.get_num_threads() == 2


def test_an_error_in_a_thread_is_raised_here(two_threads):
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda i: 1 // i, [1, 0, 2])


def test_threads_within_a_thread_do_not_wait_for_each_other(two_threads):
    assert in_threads(lambda i: sum(in_threads(lambda j: i * j, range(3))), range(8)) == [
        3 * i for i in range(8)
    ]


def test_the_callers_gradient_mode_holds_in_the_threads(two_threads):
    def state(_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.no_grad():
        assert in_threads(state, [0]) == [(False, False)]
    with torch.inference_mode():
        assert in_threads(state, [0]) == [(False, True)]
    assert in_threads(state, [0]) == [(True, False)]
