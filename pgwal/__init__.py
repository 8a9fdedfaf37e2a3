"""pgwal: incremental backups of PostgreSQL 13 to 19, driven by WAL alone."""

__version__ = "0.1.0"
