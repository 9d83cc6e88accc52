"""The short form of what `make chaos` does to a ledger: a share of every kind, found and named."""

import pytest

from tests.faults.chaos_ledger import run


@pytest.mark.chaos
def test_what_is_done_to_a_ledger_is_found_and_named(tmp_path):
    report = run(tmp_path, edits=16, seed=1, share=8)
    assert list(report) == ["edits", "rewrites", "forged entries", "forged intents", "keys"]
    for part, counts in report.items():
        assert counts["tried"] == counts["found"] == counts["named"] > 0, part
