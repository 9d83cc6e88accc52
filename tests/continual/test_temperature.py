import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.memory.prediction import HIGHEST, LOWEST, fit_temperature


def sampled(n, scale, seed=0):
    """Logits, and targets drawn from softmax(logits / scale): that temperature is the right one."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, 4))
    shares = np.exp(logits / scale)
    shares /= shares.sum(axis=1, keepdims=True)
    return logits, np.array([random.choice(4, p=share) for share in shares])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_right_temperature_is_found(scale):
    assert fit_temperature(*sampled(4000, scale)) == pytest.approx(scale, rel=0.1)


def test_it_repeats():
    assert fit_temperature(*sampled(50, 1.0)) == fit_temperature(*sampled(50, 1.0))


def test_no_cells_change_nothing():
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 1.0


def test_a_handful_of_right_cells_do_not_make_it_certain():
    logits = np.array([[2.0, 0.0, 0.0]] * 4)
    temperature = fit_temperature(logits, np.zeros(4, dtype=int))
    scaled = np.exp(logits[0] / temperature)
    assert 0.9 < scaled[0] / scaled.sum() < 0.999


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))
def test_whatever_the_cells_it_is_a_number_within_its_bounds(n, n_types, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 100, (n, n_types))
    temperature = fit_temperature(logits, random.integers(n_types, size=n))
    assert LOWEST <= temperature <= HIGHEST
