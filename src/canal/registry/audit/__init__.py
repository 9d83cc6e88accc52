"""What an audit checks, a module a subject; `full_audit` runs them all."""
