"""``python -m pgwal_cli``: the command line without its script."""

from pgwal_cli.main import main

main()
