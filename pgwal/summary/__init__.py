"""What a range of WAL changed: block maps and PostgreSQL's summary files."""
