"""The fixtures of every test are in the modules named here, which pytest finds by its setting ``pythonpath``."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import settings
from support.azurite import stop_shared_azurite
from support.shared_bucket import stop_shared_bucket

from pgwal.scan_choice import choose_scan

pytest_plugins = ["fix_formats", "fix_servers"]

# In CI the same examples each time, so that a change is judged by what it changes; by hand new ones in each run.
# No deadline: machines are shared, and what must be fast is measured elsewhere.
settings.register_profile("pgwal", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("pgwal")


def pytest_configure(config: pytest.Config) -> None:
    """Have tests use the scanner that PGWAL_SCAN demands, and what they start react to signals.

    A shell starts what runs in the background with SIGINT ignored, nohup with SIGHUP, and programs pass that on.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Where spools and keys lie: what one test leaves must be met by no other one, nor by whoever runs the tests.
    state = tempfile.mkdtemp(prefix="pgwal-state-")
    config.add_cleanup(lambda: shutil.rmtree(state, ignore_errors=True))
    os.environ["XDG_STATE_HOME"], os.environ["XDG_CONFIG_HOME"] = state, f"{state}/config"
    for name in ("PGWAL_IDENTITY", "PGWAL_IDENTITY_COMMAND", "PGWAL_METADATA_KEY"):
        os.environ.pop(name, None)
    if "PGWAL_SCAN" in os.environ:
        choose_scan(os.environ["PGWAL_SCAN"])
        if os.environ["PGWAL_SCAN"] == "interpreted":
            # It was asked for.
            config.addinivalue_line("filterwarnings", "ignore::pgwal.errors.SlowScanner")


def pytest_unconfigure() -> None:
    """Stop what tests of a process share."""
    stop_shared_bucket()
    stop_shared_azurite()


def pytest_report_header() -> str:
    from pgwal.wal.scan import COMPILED

    return f"WAL scanner: {'compiled' if COMPILED else 'interpreted'}"


def pytest_xdist_auto_num_workers() -> int:
    """Use more workers than processors: tests mostly wait for their servers."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a module, a server version and a format in one worker: they share what is costly to make."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        shared = [str(params.get(name, "")) for name in ("installation", "storage_format")]
        item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *shared])))
