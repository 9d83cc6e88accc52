"""What people write into the registry for ever can be shown anywhere."""

import unicodedata
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canal.core.errors import RegistryError
from canal.registry.ledger.ledger import plain_name, plain_reason


@pytest.mark.parametrize(
    "text", ["", "  ", "x" * 201, "a\nb", "a\x00b", "\u202eevil", "a\u2028b", "\ud800", "tab\there", "\u200b"]
)
def test_what_cannot_be_kept_is_refused(text):
    with pytest.raises(RegistryError, match="the person"):
        plain_name(text, "the person")


@pytest.mark.parametrize(
    "text", ["A. Person", "Ødegård, 研究室", "'; DROP TABLE x; --", "<b>bold</b>", "../x"]
)
def test_ordinary_and_odd_words_are_kept_as_they_are(text):
    assert plain_name(f" {text} ", "the person") == text
    assert plain_reason(text) == text


@given(st.text(max_size=300))
def test_whatever_passes_can_be_written_on_one_line(text):
    with suppress(RegistryError):
        kept = plain_name(text, "the name")
        assert kept.encode()
        assert len(kept.splitlines()) == 1
        assert not [one for one in kept if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Co")]
