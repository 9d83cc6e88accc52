"""The ledger: its entries and rules, signatures, and its mirror in a shared store."""
