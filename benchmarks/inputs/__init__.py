"""Inputs that a user meets or an attacker makes, by kind, each with the outcomes that are right for it."""
