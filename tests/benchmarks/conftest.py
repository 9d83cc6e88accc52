"""benchmarks/ is no package: its modules find each other as its scripts do."""

import sys
from pathlib import Path

import pytest

from tests.pipeline.conftest import learned  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)
