"""How versions come to be: published, restored, rebuilt."""
