"""Run the command line as ``python -m pgwal_cli``."""

import sys

try:
    if sys.argv[1:2] == ["archive-wal"]:
        from pgwal_cli.archive_command import run_short
    else:
        from pgwal_cli.restore_command import run_short

    code = run_short(sys.argv[1:])
    if code is None:
        from pgwal_cli.start import main

        main()
except (SystemExit, KeyboardInterrupt):
    # The command line ends with its code, and what interrupts it by the signal.
    raise
except BaseException as error:
    # It may stand behind the options of all commands.
    if "fetch-wal" not in sys.argv[1:6]:
        raise
    # As FATAL of restore_command, which may be what is missing: a package that is being replaced, for example.
    print(f"pgwal: error: {type(error).__name__}: {error}", file=sys.stderr)
    code = 126
sys.exit(code)
