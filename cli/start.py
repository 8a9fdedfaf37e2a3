"""Where the ``pgwal`` command begins: before anything is imported that takes time."""

from __future__ import annotations

import gc
import os
import signal
import sys

from pgwal.budget import COLLECTED_OBJECTS_AT_START


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        # Names of files are bytes, and PostgreSQL's text is UTF-8 here, whatever the locale says.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    # Until what ends a command in good order has been imported, it simply ends: nothing has been begun.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(COLLECTED_OBJECTS_AT_START)
    if sys.argv[1:2] == ["archive-wal"]:
        from pgwal_cli.archive_command import run_short

        if (code := run_short(sys.argv[1:])) is not None:
            sys.exit(code)
    from pgwal_cli.main import main as run_command_line

    run_command_line()
