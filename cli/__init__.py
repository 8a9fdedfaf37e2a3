"""The command line of pgwal."""
