"""Reading and writing PostgreSQL data directories on local disk."""
