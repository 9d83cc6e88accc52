"""Promotion of versions: the policy, and the moves of aliases that the ledger records."""
