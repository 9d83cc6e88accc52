"""One thread: the networks are tiny, and threads that wait for each other cost more than they bring."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)
