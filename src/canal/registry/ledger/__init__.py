"""The ledger: its entries and rules, who signed them, and where else they stand."""
