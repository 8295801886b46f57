"""What notebooks show: figures, tables and the sentences on them."""
