"""Words that are no cell types."""

import pytest

from canal.data.prepare import is_no_type, spelling

WORDS = ("Unassigned", "nan", "None", "NA", "N/A", "Unknown", "unclassified", "Doublets", "filtered", " ", "")


@pytest.mark.parametrize("word", [*WORDS, "low-quality", "Low_Quality", "not  annotated"])
def test_words_for_no_type(word):
    assert is_no_type(word)


@pytest.mark.parametrize(
    "name", ["B", "NK", "Null cell", "Naive B", "50", "γδ T", "NA+ T", "Unknown T", "Nana"]
)
def test_names_of_types(name):
    assert not is_no_type(name)


def test_case_and_blanks_are_no_spelling():
    assert spelling("CD8 T") == spelling(" cd8t ") == spelling("CD8\u00a0T")
    assert spelling("CD8 T") != spelling("CD8+ T")
