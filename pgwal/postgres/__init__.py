"""Talking to a PostgreSQL server: SQL and replication connections."""
