"""Where WAL, summaries and backups are kept."""
