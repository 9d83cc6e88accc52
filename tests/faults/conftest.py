"""The small real project of the pipeline's tests, for tests of faults."""

from tests.pipeline.conftest import learned, warm_python

__all__ = ["learned", "warm_python"]
