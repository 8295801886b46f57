"""One file a paper: the paper's own idea, and a `METHOD` with the same fields as every other paper's."""
