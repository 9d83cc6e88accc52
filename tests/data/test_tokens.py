import numpy as np
import pytest

from canal.core.errors import DataError
from canal.data.expression import MASK_TOKEN, MAX_TOKEN, N_TOKENS, tokenize


def test_six_levels():
    tokens = tokenize(np.array([[0, 0.99, 1, 4.999], [5, 6.2, 13, np.inf]], dtype=np.float32))
    np.testing.assert_array_equal(tokens, [[0, 0, 1, 4], [5, 5, 5, 5]])
    assert tokens.dtype == np.uint8
    assert MAX_TOKEN < MASK_TOKEN < N_TOKENS


@pytest.mark.parametrize("value", [np.nan, -0.5])
def test_refuses_what_is_no_expression(value):
    with pytest.raises(DataError, match=r"1 other value\(s\)"):
        tokenize(np.array([0.0, value]))
