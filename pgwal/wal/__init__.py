"""The write-ahead log: pages, records and what a record says changed."""
