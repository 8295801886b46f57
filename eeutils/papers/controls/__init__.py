"""Controls that one notebook uses: not the paper's own idea, but what it is checked against."""
