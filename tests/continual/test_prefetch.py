import threading
import traceback
from contextlib import closing

import pytest

from canal.continual.trainer import prefetched


def background():
    return [thread for thread in threading.enumerate() if thread.name.startswith("canal-prefetch")]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
def test_everything_comes_once_and_in_order(ahead, threads):
    assert list(prefetched(range(20), lambda n: n * n, ahead, threads)) == [n * n for n in range(20)]
    assert list(prefetched([], lambda n: n, ahead, threads)) == []
    assert background() == []


def test_the_next_is_loaded_while_the_consumer_works():
    second = threading.Event()
    with closing(prefetched([1, 2, 3], lambda n: n == 2 and second.set())) as loaded:
        next(loaded)
        assert second.wait(timeout=10)


def test_no_more_than_the_bound_waits():
    taken = []

    def items():
        for n in range(10):
            taken.append(n)
            yield n

    with closing(prefetched(items(), lambda n: n, ahead=2)) as loaded:
        assert next(loaded) == 0
        assert taken == [0, 1, 2]
        assert next(loaded) == 1
        assert taken == [0, 1, 2, 3]


def test_threads_load_side_by_side():
    both = threading.Barrier(2, timeout=10)
    assert len(list(prefetched(range(4), lambda _: both.wait(), threads=2))) == 4


def test_an_error_comes_where_its_value_would_with_its_traceback():
    def broken_load(n):
        if n == 2:
            raise ValueError("no such row")
        return n

    loaded = prefetched(range(5), broken_load)
    assert [next(loaded), next(loaded)] == [0, 1]
    with pytest.raises(ValueError, match="no such row") as caught:
        next(loaded)
    assert "broken_load" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert background() == []


def test_an_error_of_the_items_passes():
    def items():
        yield 1
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        list(prefetched(items(), lambda n: n, ahead=0))
    assert background() == []


def test_a_consumer_that_stops_leaves_no_thread_and_no_work():
    begun, go_on = [], threading.Event()

    def load(n):
        begun.append(n)
        if n:
            go_on.wait(timeout=10)
        return n

    loaded = prefetched(range(100), load, ahead=5)
    assert next(loaded) == 0
    threading.Timer(0.3, go_on.set).start()
    loaded.close()
    assert background() == []
    assert set(begun) <= {0, 1}


def test_a_consumer_that_fails_leaves_no_thread():
    with pytest.raises(RuntimeError, match="diverged"), closing(prefetched(range(9), str)) as loaded:
        for _ in loaded:
            raise RuntimeError("diverged")
    assert background() == []
