"""Formats and decisions of full and incremental backups; no I/O."""
