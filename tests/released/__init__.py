"""Projects of released revisions, made by their own code: what today's code must still read and continue."""
