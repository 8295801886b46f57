"""Is early exiting worth it on data of one's own: `python -m eeutils try PATH`."""
