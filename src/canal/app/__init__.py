"""What canal does for a person, a module a verb: each opens the project and calls the rooms below."""
