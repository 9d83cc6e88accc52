"""The checks of an audit, one module a subject; `full_audit` runs them all."""
