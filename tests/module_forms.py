"""The two forms of a module that can be compiled, for tests that hold for both."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.mark import ParameterSet

import pgwal
from pgwal.scan_choice import MODULES

INSTALLED = Path(pgwal.__file__).parent.parent
SCANNER = [name for name in MODULES if name.startswith("pgwal.wal.")]


def both_forms(module: ModuleType) -> list[ParameterSet]:
    """Return parameters for a test: the module as it was imported, and its source if that is another form."""
    if not module.COMPILED:
        return [pytest.param(module, id="interpreted")]
    return [pytest.param(module, id="compiled"), pytest.param(interpreted(module.__name__), id="interpreted")]


def interpreted(name: str) -> ModuleType:
    """Load a module's source beside its compiled form, and so those that it is made of, as PGWAL_SCAN would."""
    return interpreted_modules(name)[name]


def interpreted_modules(name: str) -> dict[str, ModuleType]:
    """Return the modules that ``interpreted`` loads, which refer to each other, by their names."""
    names = [*SCANNER[: SCANNER.index(name)], name] if name in SCANNER else [name]
    if name == "pgwal.repository.segment_part":
        names = [*SCANNER, name]
    held = {other: importlib.import_module(other) for other in names}
    loaded = {}
    try:
        for other in names:
            loaded[other] = sys.modules[other] = _load_source(other)
    finally:
        sys.modules.update(held)
    return loaded


def _load_source(name: str) -> ModuleType:
    path = INSTALLED.joinpath(*name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"interpreted_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.COMPILED
    return module
