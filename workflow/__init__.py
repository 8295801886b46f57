"""What runs this repository: notebooks without a reader, the bench, the lock. It is not installed."""
