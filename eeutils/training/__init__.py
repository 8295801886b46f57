"""One loop for every method, and one folder for every run."""
