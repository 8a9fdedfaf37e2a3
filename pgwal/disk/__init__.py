"""Files of a local disk: written durably, and read in many parts at once; for data directories and repositories."""
