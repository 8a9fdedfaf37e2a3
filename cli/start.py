"""Where the ``pgwal`` command begins: before anything is imported that takes time."""

from __future__ import annotations

import gc

_CYCLES_SOUGHT_AFTER = 50_000
"""Objects, where Python has 700: importing makes a hundred thousand, and looking for cycles among them again and again
took a fifth of the start."""


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(_CYCLES_SOUGHT_AFTER)
    from pgwal_cli.main import main as run_command_line

    run_command_line()
