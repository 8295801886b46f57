"""Which tasks there are, where their texts come from, and how answers are scored."""
