"""Run the command line as ``python -m pgwal_cli``."""

import sys

from pgwal_cli.restore_command import run_short

code = run_short(sys.argv[1:])
if code is None:
    from pgwal_cli.main import main

    main()
sys.exit(code)
