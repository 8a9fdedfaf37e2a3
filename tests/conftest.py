"""The fixtures of every test are in the modules named here, which pytest finds by its setting ``pythonpath``."""

from __future__ import annotations

import os

from pgwal.scan_choice import choose_scan

pytest_plugins = ["fix_servers"]


def pytest_configure() -> None:
    """Have the tests of this process use the scanner that PGWAL_SCAN demands, as the command line does."""
    if "PGWAL_SCAN" in os.environ:
        choose_scan(os.environ["PGWAL_SCAN"])


def pytest_report_header() -> str:
    from pgwal.wal.scan import COMPILED

    return f"WAL scanner: {'compiled' if COMPILED else 'interpreted'}"
