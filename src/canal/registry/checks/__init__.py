"""What an audit checks, a module a subject; `canal.registry.audit` runs them all."""
