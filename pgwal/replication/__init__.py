"""The streaming replication protocol, fed payloads and the time; no I/O."""
