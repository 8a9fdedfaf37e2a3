"""Which form of the WAL scanner is in use, where PGWAL_SCAN demands one: ``compiled`` or ``interpreted``.

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

_MODULE = "pgwal.wal.scan"


def choose_scan(wanted: str) -> None:
    """Have ``pgwal.wal.scan`` be the form that is wanted; before anything has imported it.

    Raises PgwalError when it is not to be had, or there is no such form.
    """
    if wanted == "interpreted":
        _load_source()
    elif wanted == "compiled":
        spec = importlib.util.find_spec(_MODULE)
        if spec is None or isinstance(spec.loader, SourceFileLoader):
            raise PgwalError(
                "PGWAL_SCAN=compiled, but this installation has no compiled WAL scanner",
                hint="Install a C compiler and install pgwal again, or unset PGWAL_SCAN.",
            )
    else:
        raise PgwalError(f"PGWAL_SCAN is {wanted!r}", hint="Set it to compiled or interpreted, or unset it.")


def _load_source() -> None:
    path = Path(__file__).parent / "wal" / "scan.py"
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    spec.loader.exec_module(module)
    # What an import statement does at its end.
    package: Any = importlib.import_module(_MODULE.rpartition(".")[0])
    package.scan = module
