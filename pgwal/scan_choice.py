"""Which form of the hot loops is in use, where PGWAL_SCAN demands one: ``compiled`` or ``interpreted``.

Without it, import takes the compiled form where there is one.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from pgwal.errors import PgwalError

_SCANNER = "pgwal.wal.scan"
MODULES = (
    # In this order, as each is imported by those behind it.
    "pgwal.wal.reference_log",
    "pgwal.wal.main_data",
    "pgwal.wal.record_parser",
    "pgwal.wal.page_walk",
    _SCANNER,
    "pgwal.summary.chunks",
    "pgwal.page",
    "pgwal.disk.block_reads",
    "pgwal.disk.small_files",
    # After the scanner, from which it inherits.
    "pgwal.repository.segment_part",
)


def choose_scan(wanted: str) -> None:
    """Have the modules that can be compiled be in the form that is wanted; before anything has imported them.

    Raises PgwalError when it is not to be had, or there is no such form.
    """
    if wanted == "interpreted":
        for module in MODULES:
            _load_source(module)
    elif wanted == "compiled":
        spec = importlib.util.find_spec(_SCANNER)
        if spec is None or isinstance(spec.loader, SourceFileLoader):
            raise PgwalError(
                "PGWAL_SCAN=compiled, but this installation has no compiled WAL scanner",
                hint="Install a C compiler and install pgwal again, or unset PGWAL_SCAN.",
            )
    else:
        raise PgwalError(f"PGWAL_SCAN is {wanted!r}", hint="Set it to compiled or interpreted, or unset it.")


def _load_source(name: str) -> None:
    path = Path(__file__).parent.parent.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    # What an import statement does at its end.
    package_name, _, short_name = name.rpartition(".")
    package: Any = importlib.import_module(package_name)
    setattr(package, short_name, module)
