"""The annotator: a frozen Performer backbone with a trained head, its labels and its genes."""
