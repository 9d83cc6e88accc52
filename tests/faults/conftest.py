"""The small real project of the pipeline's tests, for tests of faults."""

from tests.pipeline.conftest import learned

__all__ = ["learned"]
